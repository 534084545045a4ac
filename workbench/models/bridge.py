"""Models of any other family: transformers builds them and reads their weights, TransformerLens's bridge hooks them.

Such a model has the hooks, the configuration's sizes, the tokenizer and the calls that analyses use, and no weights by
name. What the bridge computes is held against transformers at every load: an adapter may reimplement a part of a model
and be wrong of a version of transformers that is newer than itself.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, ValidationError
from torch import Tensor, nn

from workbench.models.auto_tokenizer import load_tokenizer
from workbench.models.config import DTYPES, Extensions, Shape
from workbench.models.families import family_names
from workbench.models.huggingface import open_all
from workbench.models.tokenization import Tokenized
from workbench.models.tokenizer_files import read_generation
from workbench.models.weights import check_numbers, widest_dtype
from workbench.runs import shorten
from workbench.runs.foreign_files import read_object
from workbench.runs.memory import check_memory
from workbench.runs.records import describe_errors, join_faults

N_CTX_UNSAID = 2048  # of a model whose configuration names no longest sequence: ALiBi and recurrences have none
N_COMPARED = 64  # tokens of each of two sequences on which the bridge is held against transformers
# ‖Δ logits‖ / ‖logits‖ allowed: rounding in another order, and of 16 bits a router's choice that tips over by it
AGREEMENT = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "max_context_length",
)  # fmt: skip


class GenericPathWarning(UserWarning):
    """A model goes by the generic path: every analysis that runs it takes whole forward passes."""


class GenericConfig(Shape):
    """What analyses read of the configuration of a model by the generic path, in the names of `ModelConfig`."""

    model_type: str = Field(description="as in config.json")
    n_heads: int = Field(description="query heads; 1 of a model without", ge=1)
    n_key_value_heads: int | None = Field(default=None, description="key/value heads; none means n_heads", ge=1)
    d_head: int = Field(description="width of one head", ge=1)
    d_mlp: int | None = Field(default=None, description="hidden width; of experts as config.json says it", ge=1)
    normalization_type: str | None = Field(default=None, description="LN or RMS")
    n_parameters: int = Field(description="all parameters", ge=1)
    n_parameters_no_embedding: int = Field(description="without token and position tables and unembedding", ge=0)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_key_value_heads or self.n_heads

    @property
    def extensions(self) -> Extensions:
        """Features of the workbench's own models, of which such a model has none."""
        return Extensions()


class Generic(Tokenized):
    """A model behind TransformerLens's bridge, with what analyses ask of a model beside its hooks.

    Args:
        bridge: the `TransformerBridge`.
        cfg: the sizes, by the names of `ModelConfig`.
        tokenizer: of the folder, by our reading of its files; None where it has none.
        generation: what generation_config.json says.
        folder: where it was read.
    """

    trained_on = None

    def __init__(
        self, bridge: Any, cfg: GenericConfig, tokenizer: Any, generation: dict[str, Any] | None, folder: Path
    ) -> None:
        self.bridge, self.cfg, self.tokenizer, self.generation = bridge, cfg, tokenizer, generation
        self.folder = folder

    def __call__(self, tokens: Int[Tensor, "batch pos"], **span: Any) -> Any:
        return self.bridge(tokens, **span)

    def run_with_hooks(
        self, tokens: Int[Tensor, "batch pos"], fwd_hooks: list[tuple[str, Callable]], **span: Any
    ) -> Any:
        """As the bridge's: return_type and stop_at_layer may be given."""
        return self.bridge.run_with_hooks(tokens, fwd_hooks=fwd_hooks, **span)

    def hooked_tensors(self, tokens: Int[Tensor, "batch pos"]) -> dict[str, Tensor]:
        """What passes each hook that a plain forward passes."""
        _, found = self.bridge.run_with_cache(tokens, return_cache_object=False)
        points = {name: point.name for name, point in self.hook_dict.items()}
        return {name: found[point] for name, point in points.items() if isinstance(found.get(point), Tensor)}

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        """Every hook point by name, TransformerLens's names for some of them included."""
        return self.bridge.hook_dict

    @property
    def original_model(self) -> nn.Module:
        """The model of transformers, parts of which the bridge has wrapped."""
        return self.bridge.original_model

    @property
    def blocks(self) -> Any:
        """The bridge's blocks."""
        return self.bridge.blocks

    @property
    def ln_final(self) -> Any:
        """The bridge's final norm."""
        return self.bridge.ln_final

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding."""
        return self.bridge.W_U

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the model of transformers."""
        return self.bridge.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same, with their names there."""
        return self.bridge.named_parameters()

    def modules(self) -> Iterator[nn.Module]:
        """Every module, those of the bridge included."""
        return self.bridge.modules()

    @property
    def is_packed(self) -> bool:
        """Whether weights are numbers of a quantizer, which are not to be cast."""
        return any(parameter.dtype not in DTYPES.values() for parameter in self.parameters())

    def in_dtype(self, dtype: torch.dtype) -> Generic:
        """The same model in another dtype, read from its folder again: what transformers keeps in float32, and what it
        rounds (a multiplier of embeddings), a cast of the weights would not know."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GenericPathWarning)
            return load_generic(self.folder, dtype).to(self.cfg.device)

    def to(self, device: str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights.

        Raises:
            ValueError: another dtype, which transformers gives a model as it is read: it spares tables of positions.
        """
        if dtype is not None and dtype != self.cfg.dtype:
            raise ValueError(f"{self.cfg.model_name}: is of {self.cfg.dtype}; expected {dtype} given when it is loaded")
        own = torch.device(self.cfg.device)
        wanted = own if device is None else torch.device(device)
        if wanted.type != own.type or wanted.index not in (None, own.index):  # packed weights may not be moved at all
            self.bridge.to(wanted, print_details=False)
            self.cfg = self.cfg.model_copy(update={"device": str(next(self.parameters()).device)})
        return self

    def eval(self) -> Self:
        """Drop nothing out."""
        self.bridge.eval()
        return self


# --- loading


def load_generic(folder: Path, dtype: torch.dtype | None = None) -> Generic:
    """The model of a folder of another family, or of quantized weights, with its tokenizer; on the CPU, or where the
    quantizer of its weights puts it.

    Args:
        dtype: of the weights; None keeps what is stored.

    Raises:
        ValueError: an architecture that neither transformers nor the bridge knows or that is no causal language model,
            a library of quantized weights that is missing, damaged or missing weights, and a bridge that fails or
            computes other logits than transformers.
    """
    config = read_object(folder / "config.json")
    model_type = str(config.get("model_type"))
    architecture, auto_class = _find_architecture(folder, model_type)
    files = {stored.file for stored in open_all(folder).values()}
    check_memory(str(folder), sum(file.stat().st_size for file in files), "cpu")
    model = _read_model(folder, auto_class, dtype, config.get("quantization_config"))
    sizes = _count_parameters(model)
    bridge = _build_bridge(model, architecture, folder, model_type)
    cfg = _describe(bridge, model, folder, str(config.get("_name_or_path") or model_type), model_type, sizes)
    tokenizer, generation = load_tokenizer(folder), read_generation(folder)
    _warn(folder, config, model_type)
    return Generic(bridge, cfg, tokenizer, generation, folder)


def _warn(folder: Path, config: Mapping[str, Any], model_type: str) -> None:
    kind = config.get("quantization_config")
    what = f"model_type {model_type!r} has no family file" if kind is None else f"weights quantized by {_method(kind)}"
    warnings.warn(
        f"{folder}: {what}; generic path by TransformerLens's bridge, slower", GenericPathWarning, stacklevel=5
    )


def _find_architecture(folder: Path, model_type: str) -> tuple[str, Any]:
    """(the bridge's name of the architecture, transformers' class that builds it)."""
    from transformer_lens.model_bridge.sources import transformers as source
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    file, families = folder / "config.json", ", ".join(sorted(family_names()))
    where = f"{file}: model_type = {shorten(repr(model_type))}"
    unknown = (
        f"{where}: neither a family here ({families}) nor {{}} knows it; expected a model_type that one of them does"
    )
    if model_type not in CONFIG_MAPPING:
        raise ValueError(unknown.format(f"transformers {version('transformers')}"))
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a class checks what it is given in its own ways
            raise ValueError(f"{file}: transformers refuses it ({_first_line(error)})") from error
        try:
            architecture = source.determine_architecture_from_hf_config(config)
        except ValueError as error:
            raise ValueError(unknown.format(f"TransformerLens {version('transformer-lens')}")) from error
        auto_class = source.get_hf_model_class_for_architecture(architecture)
    if auto_class not in (AutoModelForCausalLM, AutoModelForImageTextToText):
        raise ValueError(f"{where}: {architecture} is no causal language model; expected one")
    return architecture, auto_class


def _method(quantization: Any) -> str:
    return shorten(str(quantization.get("quant_method") if isinstance(quantization, dict) else quantization))


def _read_model(folder: Path, auto_class: Any, dtype: torch.dtype | None, quantization: Any) -> Any:
    """The model of transformers, every weight of it from the files."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    # what transformers does not know, it passes over, and reads packed numbers as if they were weights
    if quantization is not None and not any(kind.startswith(_method(quantization)) for kind in KNOWN):
        raise ValueError(
            f"{folder}: weights quantized by {_method(quantization)}; expected one of {', '.join(sorted(KNOWN))}"
        )
    with _quiet():
        try:
            model, info = auto_class.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="auto" if dtype is None else dtype,
                attn_implementation="eager",  # some adapters leave the causal mask to it
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which are named below, and not only in a log
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # many kinds: a missing library is an ImportError, a wrong shape a RuntimeError
            what = "load it" if quantization is None else f"read weights quantized by {_method(quantization)}"
            raise ValueError(f"{folder}: transformers cannot {what} ({_first_line(error)})") from error
    wrong = [f"{shorten(str(name))} is missing" for name in sorted(info["missing_keys"])]
    wrong += [
        f"{shorten(name)} has shape {list(got)}, expected {list(expected)}"
        for name, got, expected in sorted(info["mismatched_keys"])
    ]
    wrong += [f"{shorten(str(name))} is unknown" for name in sorted(info["unexpected_keys"])]
    if wrong:
        raise ValueError(f"{folder}: {join_faults(wrong)}")
    for name, parameter in model.named_parameters():
        if parameter.dtype in DTYPES.values():
            check_numbers(parameter.detach(), name, str(folder))
    return model.eval()


def _build_bridge(model: Any, architecture: str, folder: Path, model_type: str) -> Any:
    """The bridge around the model, held against the model as transformers runs it."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    lens = f"TransformerLens {version('transformer-lens')}"
    width = _text_config(model.config).vocab_size
    length = min(N_COMPARED, _n_ctx(model.config))
    tokens = torch.randint(0, width, (2, length), generator=torch.Generator().manual_seed(0)).to(model.device)
    with torch.no_grad(), _quiet():
        plain = model(tokens, use_cache=False).logits
        try:
            bridge = build_bridge_from_module(model, architecture, hf_config=_with_width_of_z(model.config))
            found = bridge.eval()(tokens)
        except Exception as error:  # what an adapter does with a version of transformers that it was not made for
            raise ValueError(
                f"{folder}: the bridge of {lens} fails on model_type {model_type!r} with transformers "
                f"{version('transformers')} ({_first_line(error)})"
            ) from error
    difference = float((found - plain).double().norm() / plain.double().norm())
    if not difference <= (allowed := AGREEMENT[plain.dtype]):
        raise ValueError(
            f"{folder}: the bridge of {lens} computes other logits of model_type {model_type!r} than transformers "
            f"{version('transformers')}: ‖Δ‖/‖logits‖ = {difference:.2g}; expected at most {allowed:g}"
        )
    return bridge


def _describe(
    bridge: Any, model: Any, folder: Path, name: str, model_type: str, sizes: tuple[int, int]
) -> GenericConfig:
    theirs = bridge.cfg
    is_packed = getattr(model, "hf_quantizer", None) is not None
    try:
        return GenericConfig(
            model_name=name,
            model_type=model_type,
            n_layers=theirs.n_layers,
            d_model=theirs.d_model,
            n_ctx=_n_ctx(model.config),
            d_vocab=theirs.d_vocab,
            n_heads=theirs.n_heads,
            n_key_value_heads=theirs.n_key_value_heads,
            d_head=theirs.d_head,
            d_mlp=theirs.d_mlp,
            normalization_type=theirs.normalization_type,
            tie_word_embeddings=bool(model.config.tie_word_embeddings),
            dtype=model.dtype if is_packed else widest_dtype(model.parameters()),
            device=str(model.device),
            n_parameters=sizes[0],
            n_parameters_no_embedding=sizes[1],
        )
    except ValidationError as error:
        raise ValueError(f"{folder / 'config.json'}: {describe_errors(error)}") from error


def _count_parameters(model: Any) -> tuple[int, int]:
    """(all parameters, those without token and position tables and unembedding)."""
    tables = [own for own in (model.get_input_embeddings(), model.get_output_embeddings()) if own is not None]
    tables += [own for name, own in model.named_modules() if name.rsplit(".", 1)[-1] in ("wpe", "embed_positions")]
    left_out = {id(p): p.numel() for table in tables for p in table.parameters()}
    total = model.num_parameters()  # of packed 4-bit weights, too
    return total, total - sum(left_out.values())


def _text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    return config.get_text_config()


def _with_width_of_z(config: Any) -> Any:
    """The configuration for the bridge, which parts z into heads as wide as head_dim: in latent attention that is the
    width of what is rotated, and values have their own."""
    width = getattr(_text_config(config), "v_head_dim", None)
    if width is None:
        return config
    own = copy.deepcopy(config)
    _text_config(own).head_dim = width
    return own


def _n_ctx(config: Any) -> int:
    text = _text_config(config)
    lengths = [getattr(text, name, None) for name in _LENGTHS]
    return next((length for length in lengths if isinstance(length, int) and length > 0), N_CTX_UNSAID)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {shorten(lines[0] if lines else 'no message', 200)}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, neither library writes warnings, reports or progress to the terminal: what matters is asked of what they
    return, and said in one line."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
