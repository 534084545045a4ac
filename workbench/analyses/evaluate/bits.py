"""Bits per byte of a model on a text, over plain or sliding windows, as stored and after an int8 round trip.

    bits per byte = Σ over the text's tokens of −log2 p(token | what its window shows before it) / its UTF-8 bytes
    perplexity = exp(mean of −ln p over the text's tokens)

Documents stand one after another, each behind the token that begins a text, or, where nothing begins one, the token
that separates documents. That token is context and never scored: it has no bytes. Plain windows follow one another,
n_ctx tokens each. Sliding windows end every `stride` tokens and score only their last `stride`, so that a token has at
least n_ctx − stride + 1 tokens before it; the first window scores all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int64
from tokenizers import Tokenizer
from torch import Tensor

from workbench.analyses.ablate.impacts import impacts
from workbench.data.tokenizer import text_encoder
from workbench.models.checks import device_of, is_whole, run_hooked
from workbench.models.cross_entropy import linear_cross_entropy, perplexity
from workbench.models.recurrence import exit_depth
from workbench.models.tokenizer_files import begin_ids, separator_id, tokenizer_of
from workbench.models.transformer import check_ours
from workbench.training.quantization import pack_model, unpack_model

STRIDE = 64  # tokens that a sliding window scores
TOKENS_TOGETHER = 8192  # tokens that go through the model together; more gain nothing on a CPU
N_DEPTH_WINDOWS = 16  # windows that the mean exit depth is taken on


@dataclass(frozen=True)
class EncodedText:
    """A text as one stream of tokens, the token that begins a document first."""

    tokens: Int64[Tensor, " n"]
    is_text: Bool[Tensor, " n"]
    """False at the tokens between documents, which are not scored"""
    n_bytes: int
    """UTF-8 bytes of the text"""

    @property
    def n_scored(self) -> int:
        """Tokens that have bytes."""
        return int(self.is_text.sum())


def encode_text(tokenizer: Any, texts: Sequence[str]) -> EncodedText:
    """The stream of the documents `texts`.

    Args:
        tokenizer: a Hugging Face fast tokenizer or a `tokenizers.Tokenizer`; see `begin_ids` and `separator_id`.

    Raises:
        ValueError: no text, text that UTF-8 cannot hold, no tokenizer, or one that loses bytes: what its tokens decode
            to is not the text (its first difference is shown).
    """
    if tokenizer is None:
        raise ValueError("evaluate: this model has no tokenizer; expected one, bits per byte are counted over text")
    if isinstance(texts, str) or not any(texts):
        raise ValueError(f"evaluate: got {texts!r:.40}; expected a list of documents that are not all empty")
    encoder = text_encoder(tokenizer)
    lead = begin_ids(tokenizer) or [separator_id(tokenizer)]
    tokens, is_text, n_bytes = [], [], 0
    for text in texts:
        try:
            n_bytes += len(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(
                f"evaluate: the text is not UTF-8 at character {error.start}; expected UTF-8 text"
            ) from None
        ids = encoder.encode(text, add_special_tokens=False).ids
        _check_lossless(encoder, text, ids)
        tokens += [*lead, *ids]
        is_text += [*[False] * len(lead), *[True] * len(ids)]
    return EncodedText(torch.tensor(tokens), torch.tensor(is_text), n_bytes)


def _check_lossless(encoder: Tokenizer, text: str, ids: list[int]) -> None:
    decoded = encoder.decode(ids, skip_special_tokens=False)
    # some decoders drop, or add, one space at the very start: no byte of the text is lost by that
    if decoded in (text, text.removeprefix(" "), f" {text}"):
        return
    pairs = zip(decoded, text, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(decoded), len(text)))
    raise ValueError(
        f"evaluate: the tokenizer loses bytes: {text[at : at + 20]!r} comes back as {decoded[at : at + 20]!r}; "
        "expected one that decodes to what it encoded"
    )


@dataclass(frozen=True)
class Window:
    """Tokens start … stop − 1 are read; the n_scored tokens that end with token `stop` are predicted."""

    start: int
    stop: int
    n_scored: int


def plan_windows(n_tokens: int, n_ctx: int, stride: int | None = None) -> list[Window]:
    """Windows that predict each of the tokens 1 … n_tokens − 1 once: plain ones, or sliding by `stride`.

    The last window scores what is left. A plain one holds nothing else; a sliding one still reads n_ctx tokens.

    Raises:
        ValueError: fewer than 2 tokens, or a stride not in 1 … n_ctx.
    """
    if n_tokens < 2:
        raise ValueError(f"evaluate: the text has {n_tokens - 1} tokens; expected at least 1")
    if stride is not None and not 1 <= stride <= n_ctx:
        raise ValueError(f"stride: got {stride}; expected 1 to the window's {n_ctx} tokens")
    last = n_tokens - 1
    first = min(n_ctx, last)
    windows = [Window(0, first, first)]
    while (done := windows[-1].stop) < last:
        stop = min(done + (stride or n_ctx), last)
        windows.append(Window(done if stride is None else stop - n_ctx, stop, stop - done))
    return windows


@torch.no_grad()
def token_nats(
    model: Any,
    text: EncodedText,
    windows: Sequence[Window],
    *,
    tokens_together: int = TOKENS_TOGETHER,
    on_progress: Callable[[float], None] | None = None,
) -> Float64[Tensor, " n"]:
    """−ln p of each token of the stream but the first, 0 where it is not text, in the order of the stream."""
    nats = torch.zeros(len(text.tokens), dtype=torch.float64)
    done = 0
    for batch in _alike(windows, tokens_together):
        inputs = torch.stack([text.tokens[w.start : w.stop] for w in batch]).to(device_of(model))
        n = batch[0].n_scored
        targets = torch.stack([text.tokens[w.stop - n + 1 : w.stop + 1] for w in batch]).to(inputs.device)
        losses = _last_nats(model, inputs, targets).double().cpu()
        for window, row in zip(batch, losses, strict=True):
            nats[window.stop - n + 1 : window.stop + 1] = row
        done += len(batch)
        if on_progress is not None:
            on_progress(done / len(windows))
    return (nats * text.is_text)[1:]


def _alike(windows: Sequence[Window], tokens_together: int) -> Iterator[list[Window]]:
    """Runs of windows of one length that score equally many tokens, of about tokens_together tokens in all."""
    batch: list[Window] = []
    for window in windows:
        length = window.stop - window.start
        if batch:
            like = batch[0]
            is_alike = (like.stop - like.start, like.n_scored) == (length, window.n_scored)
            if not is_alike or (len(batch) + 1) * length > tokens_together:
                yield batch
                batch = []
        batch.append(window)
    yield batch


def _last_nats(model: Any, inputs: Tensor, targets: Tensor) -> Float[Tensor, "batch scored"]:
    """Loss of the targets, predicted from the last positions; only these are unembedded."""
    n = targets.shape[1]
    if not is_whole(model):
        logits = run_hooked(model, inputs, [], return_type="logits")[:, -n:]
        log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
        return -log_p.gather(-1, targets[..., None]).squeeze(-1)
    x = model.ln_final(model.read_out(model(inputs, return_type=None))[:, -n:])
    losses = linear_cross_entropy(
        x.flatten(0, 1),
        model.W_U,
        targets.flatten(),
        b_U=model.b_U,
        soft_cap=model.cfg.output_logits_soft_cap,
        per_row=True,
    )
    return losses.view_as(targets)


@dataclass(frozen=True)
class Bits:
    """Bits per byte with its paired standard error and 95 % interval; nan where there is a single stretch."""

    value: float
    stderr: float
    low: float
    high: float


def bits_per_byte(nats: Float64[Tensor, " n"], n_bytes: int) -> float:
    """Σ nats / ln 2 / n_bytes."""
    return float(nats.sum()) / math.log(2) / n_bytes


def bits_with_interval(nats: Float64[Tensor, " n"], n_bytes: int, length: int, seed: int) -> Bits:
    """Bits per byte of nats (or of differences of nats: then of the difference), its error over stretches of text.

    The stream is cut into stretches of `length` tokens, the unit that the bootstrap of `impacts` resamples.
    """
    sums = np.array([float(part.sum()) for part in nats.split(length)])
    values = sums / math.log(2) / n_bytes * len(sums)  # their mean is the bits per byte
    # relative to a constant base of 100 the impact in per cent is the mean itself
    base = np.full(len(sums), 100.0)
    found = impacts(base, (base + values)[None], np.random.default_rng(seed))
    return Bits(bits_per_byte(nats, n_bytes), *(float(v[0]) for v in (found.stderr, found.ci_low, found.ci_high)))


def evaluate(
    model: Any,
    texts: Sequence[str],
    *,
    n_ctx: int | None = None,
    stride: int | None = None,
    quantized: bool = True,
    seed: int = 0,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The rows of evaluation.csv: bits per byte and perplexity for weights (stored, int8) × windows (plain, sliding).

    int8 weights come out of `unpack_model(pack_model(model))`: packed by zlib and unpacked again before they are
    scored; artifact_bytes is the packed length. exit_depth is the mean number of passes that a token of a recurrent
    model takes. perplexity is exp(nats), its interval exp of the ends of that of nats, which is bits per byte's in
    another unit; it depends on the tokenizer, which bits per byte do not.

    Args:
        model: a `HookedLM` (or, not quantized, any model that gives logits), with its tokenizer.
        texts: documents.
        n_ctx: tokens per window; the model's by default.
        stride: tokens between the ends of successive sliding windows; 64 by default, or n_ctx if that is less.
        quantized: also measure after the int8 round trip.
        seed: of the bootstrap; fills the column seed.

    Raises:
        ValueError: as `encode_text` and `plan_windows`; n_ctx longer than the model's; weights that int8 cannot hold;
            another class of model, if it is to be quantized.
    """
    text, length, stride = check_evaluation(model, texts, n_ctx=n_ctx, stride=stride, quantized=quantized)
    plans = {"plain": plan_windows(len(text.tokens), length)}
    plans["sliding"] = plan_windows(len(text.tokens), length, stride)
    subjects: dict[str, tuple[Any, float]] = {"stored": (model, math.nan)}
    if quantized:
        data = pack_model(model)
        subjects["int8"] = (unpack_model(data, device=str(device_of(model))), float(len(data)))
    n_windows = sum(len(plan) for plan in plans.values()) * len(subjects)
    rows, done = [], 0
    for weights, (subject, artifact_bytes) in subjects.items():
        depth = mean_exit_depth(subject, text, plans["plain"])
        for windows, plan in plans.items():
            share = _part_of(on_progress, done / n_windows, len(plan) / n_windows)
            nats = token_nats(subject, text, plan, on_progress=share)
            done += len(plan)
            bits = bits_with_interval(nats, text.n_bytes, length, seed)
            mean = float(nats.sum()) / text.n_scored
            nats_per_bit = math.log(2) * text.n_bytes / text.n_scored  # nats per token of one bit per byte
            rows.append(
                {
                    "model": name or model.cfg.model_name,
                    "seed": seed,
                    "weights": weights,
                    "windows": windows,
                    "n_ctx": length,
                    "stride": stride if windows == "sliding" else length,
                    "nats": mean,
                    "bits_per_byte": bits.value,
                    "stderr": bits.stderr,
                    "ci_low": bits.low,
                    "ci_high": bits.high,
                    "n_tokens": text.n_scored,
                    "n_bytes": text.n_bytes,
                    "artifact_bytes": artifact_bytes,
                    "exit_depth": depth,
                    "perplexity": perplexity(mean),
                    "perplexity_low": perplexity(bits.low * nats_per_bit),
                    "perplexity_high": perplexity(bits.high * nats_per_bit),
                }
            )
    return pd.DataFrame(rows)


def check_evaluation(
    model: Any, texts: Sequence[str], *, n_ctx: int | None = None, stride: int | None = None, quantized: bool = False
) -> tuple[EncodedText, int, int]:
    """(the text's tokens, tokens per window, tokens between the ends of sliding windows); errors as `evaluate`."""
    if quantized:
        check_ours("evaluate with int8 weights", model)
    length = window_length(model, n_ctx)
    stride = min(STRIDE, length) if stride is None else stride
    text = encode_text(tokenizer_of(model), texts)
    plan_windows(len(text.tokens), length, stride)
    return text, length, stride


def window_length(model: Any, n_ctx: int | None) -> int:
    """Tokens per window: n_ctx where given, else the model's. Raises ValueError if that is more than the model's."""
    length = model.cfg.n_ctx if n_ctx is None else n_ctx
    if not 1 <= length <= model.cfg.n_ctx:
        raise ValueError(f"n_ctx: got {length}; expected 1 to the model's n_ctx = {model.cfg.n_ctx}")
    return length


def mean_exit_depth(model: Any, text: EncodedText, windows: Sequence[Window]) -> float:
    """Mean expected number of passes of a token, over up to 16 windows; nan for a model without an exit gate."""
    gates = [name for name in model.hook_dict if name.startswith("pass.") and name.endswith("hook_exit_gate")]
    if not gates:
        return math.nan
    step = max(1, len(windows) // N_DEPTH_WINDOWS)
    depths = []
    with torch.no_grad():
        for window in windows[::step][:N_DEPTH_WINDOWS]:
            tokens = text.tokens[window.start : window.stop][None].to(device_of(model))
            _, cache = model.run_with_cache(tokens, names_filter=gates, return_type=None, return_cache_object=False)
            depths.append(exit_depth([cache[gate].double() for gate in gates]).flatten())
    return float(torch.cat(depths).mean())


def _part_of(tell: Callable[[float], None] | None, start: float, share: float) -> Callable[[float], None] | None:
    return None if tell is None else lambda done: tell(start + share * done)
