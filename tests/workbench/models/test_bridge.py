"""Models without a family file: every verb gives what transformers alone gives, or says in one line what it lacks.

A new architecture is one entry of `generic_for_tests`, a new verb one of `VERBS`; what cannot be measured is in
`REFUSED`, and everything else has to be right. `--figures FILE` writes the table.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generic_for_tests import (
    ARCHITECTURES,
    D_MODEL,
    D_VOCAB,
    N_CTX,
    N_HEADS,
    N_LAYERS,
    QUICK,
    WRONG,
    Architecture,
    Plain,
    build,
    write_folder,
)
from models_for_tests import small_model
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from tokenizers import Tokenizer, processors
from typer.testing import CliRunner

import probes
from reports.tables import read_table
from workbench.analyses.ablate.ablation import ablate
from workbench.analyses.evaluate.bits import encode_text
from workbench.analyses.probe.states import build_prompts
from workbench.analyses.sae_train.head_saes import find_stack
from workbench.cli.app import app
from workbench.data.concepts import ConceptSet
from workbench.data.shards import read_shards
from workbench.data.text_windows import spread_windows
from workbench.data.tokenizer import load_tokenizer
from workbench.models.bridge import Generic, GenericPathWarning
from workbench.models.checkpoint import save
from workbench.models.load import load
from workbench.models.tokenizer_files import wrap_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*generic path:workbench.models.bridge.GenericPathWarning"),
    pytest.mark.filterwarnings("ignore:topology. .* tokens:probes.SmallSampleWarning"),
    pytest.mark.filterwarnings("ignore:topology. what heads write:workbench.analyses.topology.heads.ResidualWarning"),
    pytest.mark.filterwarnings("ignore:Trainer.step. all features of SAE:UserWarning"),
    pytest.mark.filterwarnings("ignore:spectra. .* shows no W_:workbench.analyses.spectra.weights.MatrixWarning"),
]
CLOSE = {"rtol": 3e-4, "atol": 3e-4}  # two implementations in float32; impacts are per cent of a loss of 7
LENGTH, N_WINDOWS = 24, 6
TEXT = "The cat saw it. A river."
WORDS = ("b", "d", "f", "h", "k")
TEMPLATES = ("a {X}", "we {X}, so")
SUMS = '[plural]\nscenarios = [["The cat", "is", "The cats", "are"]]\n'


@dataclass(frozen=True)
class Given:
    """A folder, and what is true of it."""

    name: str
    folder: Path
    about: Architecture
    plain: Plain
    model: Any

    @functools.cached_property
    def tokens(self) -> torch.Tensor:
        """The windows that a verb reads."""
        text = str(self.folder.parent / "text.txt")
        return spread_windows(self.model, text, n_tokens=LENGTH * N_WINDOWS, n_ctx=LENGTH)

    @property
    def layers(self) -> str:
        """Those with heads, as an option takes them."""
        return ",".join(map(str, self.about.layers))

    def run(self, verb: str, *options: Any, out: str = "", reads: bool = True, subject: bool = True) -> Path:
        """The directory that a verb on this model writes."""
        windows = ["--data", self.folder.parent / "text.txt", "--n-ctx", LENGTH] if reads else []
        own = ["--ckpt", self.folder] if subject else []
        result = call(verb, *own, *windows, "--out", out or verb, "--device", "cpu", *options)
        assert result.exit_code == 0, result.output
        return Path.cwd() / (out or verb)


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("generic")
    lines = [f"Line {i} of the text tells of cat number {i * i} and its river.\n" for i in range(3000)]
    (place / "text.txt").write_text("".join(lines))
    return place


@pytest.fixture(scope="module")
def given_of(place):
    @functools.cache
    def make(name: str) -> Given:
        about = ARCHITECTURES[name]
        folder = write_folder(place / name, about.config, about.settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GenericPathWarning)
            return Given(name, folder, about, Plain(folder, about), load(folder, "cpu"))

    return make


@pytest.fixture(autouse=True)
def at_home(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_CACHE", str(place / "cache"))


def without(which: int | slice) -> Callable[[torch.Tensor], torch.Tensor]:
    """Takes heads out of z."""

    def edit(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[:, :, which] = 0
        return z

    return edit


N_TOKENS = ("--n-tokens", LENGTH * N_WINDOWS)


# --- the verbs


def check_logits(given: Given) -> None:
    tokens = torch.randint(0, D_VOCAB, (3, N_CTX), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(given.model(tokens), given.plain.logits(tokens), rtol=1e-4, atol=1e-4)
    assert given.model.cfg.n_parameters == sum(p.numel() for p in given.plain.model.parameters())


def check_topology(given: Given) -> None:
    out = given.run("topology", *N_TOKENS, "--layers", given.layers)
    table, maps = read_table(out, "head_cosines"), given.plain.maps(given.tokens)
    for layer in given.about.layers:
        (z,) = given.plain.seen(given.tokens, ("z", layer))
        vectors = {"z": z.movedim(2, 0).flatten(1), "pattern": maps[layer].movedim(1, 0).flatten(1)}
        if given.about.writes is not None:
            vectors["residual"] = torch.einsum("bpha,had->hbpd", z, given.plain.W_O(layer)).flatten(1)
        own = table[table["layer"] == layer]
        assert own["basis"].unique().tolist() == list(vectors)
        for basis, rows in vectors.items():
            rows = torch.nn.functional.normalize(rows.double())
            found = own[own["basis"] == basis].pivot_table(index="head_i", columns="head_j", values="cos")
            np.testing.assert_allclose(found.to_numpy(), rows @ rows.T, atol=2e-5, err_msg=f"{layer} {basis}")


def check_attention(given: Given) -> None:
    out = given.run("attention", *N_TOKENS, "--layers", given.layers, "--n-repeated", 2)
    table, maps = read_table(out, "attention_stats"), given.plain.maps(given.tokens)
    assert len(table) == len(given.about.layers) * N_HEADS
    for row in table.itertuples():
        own = maps[row.layer][:, row.head].double()
        assert row.entropy == pytest.approx(float(torch.special.entr(own).sum(-1).mean()), abs=1e-5)
        assert row.bos_mass == pytest.approx(float(own[:, 1:, 0].mean()), abs=1e-5)


def check_impacts(given: Given, table: Any, edits: list[dict]) -> None:
    base, clean = given.plain.losses(given.tokens)
    assert len(table) == len(edits) > 0
    for row, edit in zip(table.itertuples(), edits, strict=True):
        losses, log_p = given.plain.losses(given.tokens, edit)
        kl = (clean.exp() * (clean - log_p)).sum(-1).mean()
        wanted = [base.mean(), losses.mean(), 100 * (losses.mean() / base.mean() - 1), kl]
        np.testing.assert_allclose([row.base_loss, row.ablated_loss, row.impact_pct, row.kl], wanted, **CLOSE)


def check_ablate(given: Given) -> None:
    own = ("--layers", given.layers, "--set", "n_bootstrap=100", *N_TOKENS)
    table = read_table(given.run("ablate", "--components", "head,layer", *own), "ablation_results")
    which = [*range(N_HEADS), slice(None)]
    check_impacts(given, table, [{("z", layer): without(h)} for layer in given.about.layers for h in which])
    heads = iter(table[table["component"] == "head"]["estimate_pct"])
    base = given.plain.losses(given.tokens)[0].mean()
    for layer in given.about.layers:
        scale = torch.ones(N_HEADS, 1, requires_grad=True)
        with given.plain.editing({("z", layer): lambda z, scale=scale: z * scale}):
            log_p = torch.log_softmax(given.plain.logits(given.tokens).double(), -1)
        loss = -log_p[:, :-1].gather(-1, given.tokens[:, 1:, None]).mean()
        (slope,) = torch.autograd.grad(loss, scale)
        np.testing.assert_allclose([next(heads) for _ in range(N_HEADS)], -100 * slope[:, 0] / base, **CLOSE)


def check_ablate_pairs(given: Given) -> None:
    layer = given.about.layers[-1]
    options = ("--pairs", f"{layer}.0+{layer}.2", "--layers", layer, "--heads", "0", "--set", "n_bootstrap=100")
    table = read_table(given.run("ablate", *options, *N_TOKENS), "ablation_pairs")
    both = given.plain.losses(given.tokens, {("z", layer): lambda z: without(0)(without(2)(z))})[0].mean()
    base = given.plain.losses(given.tokens)[0].mean()
    np.testing.assert_allclose(table["joint_pct"], [100 * (both / base - 1)], **CLOSE)


def check_ablate_mlps(given: Given) -> None:
    options = ("--components", "mlp", "--set", "n_bootstrap=100", "--no-has-estimate", *N_TOKENS)
    table = read_table(given.run("ablate", *options), "ablation_results")
    check_impacts(given, table, [{("mlp", layer): torch.zeros_like} for layer in range(N_LAYERS)])


def check_harvest(given: Given) -> None:
    layer = given.about.layers[-1]
    names = {f"blocks.{layer}.attn.hook_z": ("z", layer), f"blocks.{layer}.hook_resid_post": ("post", layer)}
    hooks = [option for name in names for option in ("--hook", name)]
    out = given.run("harvest", *hooks, "--n-sequences", N_WINDOWS)
    wanted = dict(zip(names, given.plain.seen(given.tokens, *names.values()), strict=True))
    n = 0
    for part in read_shards(out):
        n += len(part["token"])
        for name, activation in wanted.items():
            own = activation[part["sequence"], part["position"]]
            torch.testing.assert_close(part[name].flatten(1), own.flatten(1), rtol=1e-4, atol=1e-4)
    assert n == given.tokens.numel()


def check_saes(given: Given) -> None:
    """sae-train, then what reads its stack: atlas and match."""
    layer, head = given.about.layers[-1], 1
    sizes = {"batch_size": 48, "buffer_tokens": 96, "expansion": 2, "n_ce_tokens": LENGTH * N_WINDOWS}
    options = [option for key, value in sizes.items() for option in ("--set", f"{key}={value}")]
    counts = ("--n-train-tokens", 480, "--n-eval-tokens", LENGTH * N_WINDOWS)
    out = given.run("sae-train", "--layers", layer, "--heads", head, "--l1", 0.5, *counts, *options)
    row = read_table(out, "sae_training_results").iloc[0]
    counted = (torch.arange(LENGTH) > 0) & (given.tokens != 0)  # special tokens and position 0 are left as they are

    def zero(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[:, :, head] = torch.where(counted[..., None], 0, z[:, :, head])
        return z

    for column, edits in {"ce_base": {}, "ce_zero": {("z", layer): zero}}.items():
        assert row[column] == pytest.approx(float(given.plain.losses(given.tokens, edits)[0].mean()), rel=1e-5)
    check_atlas(given, out, layer, head, counted)
    pair = (given.folder, given.folder, "--sae", out, "--sae", out, *N_TOKENS)
    match = read_table(given.run("match", *pair, subject=False), "match")
    found = [json.loads(cell) for cell in match["match"] if cell]
    assert found
    assert all(cell[3] == pytest.approx(1, abs=1e-3) for cell in found), "with itself"


def check_atlas(given: Given, saes: Path, layer: int, head: int, counted: torch.Tensor) -> None:
    out = given.run("atlas", "--sae", saes, "--n-contexts", 1, "--n-logits", 3, *N_TOKENS)
    table, stack = read_table(out, "feature_atlas"), find_stack(saes)
    (z,) = given.plain.seen(given.tokens, ("z", layer))
    with torch.no_grad():
        acts = stack.encode(z[:, :, head][counted][None])[0]
    np.testing.assert_allclose(table["density"], (acts > 0).double().mean(0), atol=1e-6)
    np.testing.assert_allclose(table["max_act"], acts.amax(0), rtol=1e-4, atol=1e-5)
    about, cells = given.about, [json.loads(cell) for cell in table["logit_promoted"]]
    if about.writes is None:
        assert cells == [[]] * len(table), "what a feature promotes is not known behind a norm"
        return
    # what each row promotes, by the slope of the logits along it at the model's own final norm without its division
    rows = about.writes * stack.W_dec.detach()[0] @ given.plain.W_O(layer)[head]
    norm = given.plain.model.get_submodule(about.norm)
    gain = norm.weight.detach() + (about.config == "NemotronConfig")
    if "LayerNorm" in type(norm).__name__:
        rows = rows - rows.mean(-1, keepdim=True)
    effects = about.unembeds * (rows * gain) @ given.plain.W_U.T
    effects -= effects.mean(-1, keepdim=True)
    wanted = effects.topk(3).values
    np.testing.assert_allclose([[value for _, value in cell] for cell in cells], wanted, rtol=2e-3, atol=2e-4)


def check_compare(given: Given) -> None:
    other = small_model("janus-v3", d_vocab=D_VOCAB)
    other.tokenizer = wrap_tokenizer(load_tokenizer(f"embedded-{D_VOCAB}"))
    Path("other").mkdir()
    save(other, Path("other"))
    length = min(LENGTH, other.cfg.n_ctx)
    pair = (given.folder, "other", "--n-sequences", N_WINDOWS, "--n-components", 2)
    own = read_table(given.run("compare", *pair, subject=False), "pc_cosine").set_index("layer")["cka"]
    places = [("embed", 0), *(("post", layer) for layer in range(N_LAYERS))]
    states = [x[:, 1:].double().mean(1).numpy() for x in given.plain.seen(given.tokens, *places)]
    _, cache = other.run_with_cache(given.tokens[:, :length])
    hooks = {-1: "hook_embed", 0: "blocks.0.hook_resid_post", 1: "blocks.2.hook_resid_post"}
    for layer, hook in hooks.items():
        theirs = cache[hook][:, 1:].double().mean(1).detach().numpy()
        assert own[layer].iloc[0] == pytest.approx(probes.linear_cka(states[layer + 1], theirs), abs=1e-4)


def check_spectra(given: Given) -> None:
    table = read_table(given.run("spectra", reads=False), "weight_spectra").set_index(["layer", "matrix"])
    n = 0
    for layer, block in enumerate(given.plain.blocks):
        known = dict(block.named_modules())
        for module, ours in given.about.matrices.items():
            if isinstance(getattr(known.get(module), "weight", None), torch.Tensor):
                ranks = probes.matrix_ranks(known[module].weight.detach().double().numpy())
                found = table.loc[(layer, ours)]
                for rank in ("nuclear_rank", "effective_rank", "stable_rank"):
                    assert found[rank] == pytest.approx(getattr(ranks, rank), rel=1e-5), (layer, ours)
                n += 1
    assert n >= len(given.about.matrices)


def check_evaluate(given: Given) -> None:
    Path("short.txt").write_text(TEXT)
    options = ("--data", "short.txt", "--split", "all")
    table = read_table(given.run("evaluate", *options, reads=False), "evaluation").set_index("windows")
    text = encode_text(given.model.tokenizer, [TEXT])
    assert 4 < len(text.tokens) <= N_CTX, "one window reads all of it"
    with torch.no_grad():
        log_p = torch.log_softmax(given.plain.logits(text.tokens[None, :-1]).double(), -1)[0]
    nats = float(-log_p.gather(-1, text.tokens[1:, None])[:, 0][text.is_text[1:]].sum())
    for windows in ("plain", "sliding"):
        assert table.loc[windows, "bits_per_byte"] == pytest.approx(nats / math.log(2) / len(TEXT.encode()), rel=1e-5)
        assert table.loc[windows, "perplexity"] == pytest.approx(math.exp(nats / text.n_scored), rel=1e-4)


def check_probe(given: Given) -> None:
    words = ", ".join(f'"{word}"' for word in WORDS)
    Path("letters.toml").write_text(f'[letters]\ncategory = "c"\ntopology = "ordinal"\nwords = [{words}]\n')
    options = ["--concepts", "letters.toml", "--sets", "letters", "--n-permutations", 9, "--n-points", 40]
    options += [option for template in TEMPLATES for option in ("--template", template)]
    out = given.run("probe", *options)
    letters = ConceptSet(name="letters", category="c", topology="ordinal", words=WORDS)
    prompts, _ = build_prompts(given.model.tokenizer, [letters], TEMPLATES)
    places = [("embed", 0), *(("post", layer) for layer in range(N_LAYERS))]
    means = np.zeros((len(WORDS), len(places), D_MODEL))
    for prompt in prompts:
        states = given.plain.seen(torch.tensor([prompt.tokens]), *places)
        means[prompt.word] += np.stack([x[0, prompt.stop - 1].double().numpy() for x in states]) / len(TEMPLATES)
    upper = np.triu_indices(len(WORDS), 1)
    target = np.abs(np.subtract.outer(np.arange(len(WORDS)), np.arange(len(WORDS))))[upper]
    r = read_table(out, "concept_mantel").set_index("layer")["r"]
    for state in range(len(places)):
        between = np.linalg.norm(means[:, None, state] - means[None, :, state], axis=-1)[upper]
        assert r[state - 1] == pytest.approx(spearmanr(between, target).statistic, abs=1e-6), state
    assert np.isfinite(read_table(out, "intrinsic_dimension")["dimension"]).all()


def greedy(given: Given, prompt: str, n: int) -> list[int]:
    """What transformers' own greedy search adds."""
    ids = torch.tensor([given.model.tokenizer.encode(prompt)])
    with torch.no_grad():
        grown = given.plain.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, eos_token_id=0, pad_token_id=0
        )
    new = grown[0, ids.shape[1] :].tolist()
    return new[: new.index(0)] if 0 in new else new


def check_text_quality(given: Given) -> None:
    Path("prompts.toml").write_text('[a]\nprompts = ["The cat", "A river of"]\n')
    for name in ("grammar", "sums"):
        Path(f"{name}.toml").write_text(SUMS)
    Path("recall.toml").write_text(
        '[hats]\nstatement = "{name} is {value}."\nquestion = "{name} is {value}"\n'
        'names = ["Ma", "He"]\nvalues = ["a", "b"]\n'
    )
    options = ("--prompts", "prompts.toml", "--battery", "sums.toml", "--battery", "grammar.toml", "--tagger", "none")
    options += ("--recall", "recall.toml", "--temperature", 0, "--n-samples", 1, "--max-new-tokens", 8)
    raw = json.loads((given.run("text-quality", *options, reads=False) / "text_quality.json").read_text())
    assert [list(own) for own in raw["tokens"]] == [greedy(given, text, 8) for text in ("The cat", "A river of")]
    encode = functools.partial(given.model.tokenizer.encode, add_special_tokens=False)
    for item in raw["items"]:
        scores = []
        for answer in (item["right"], item["wrong"]):
            head, whole = ([0, *encode(text)] for text in (item["prompt"], f"{item['prompt']} {answer}"))
            with torch.no_grad():
                log_p = torch.log_softmax(given.plain.logits(torch.tensor([whole])).double(), -1)[0]
            scores.append(float(sum(log_p[at - 1, whole[at]] for at in range(len(head), len(whole)))))
        assert item["margin"] == pytest.approx(scores[0] - scores[1], abs=1e-4), item


def check_generate(given: Given) -> None:
    result = call("generate", "The cat", "--ckpt", given.folder, "--temperature", 0, "--max-new-tokens", 8, "--json")
    assert result.exit_code == 0, result.output
    prompt, tokenizer = given.model.tokenizer.encode("The cat"), given.model.tokenizer
    whole = tokenizer.decode([*prompt, *greedy(given, "The cat", 8)], skip_special_tokens=True)
    wanted = whole.removeprefix("The cat")
    assert json.loads(result.stdout.splitlines()[-1])["rows"][0]["continuation"] == wanted


def check_hooks(given: Given) -> None:
    result = call("hooks", "--ckpt", given.folder, "--json", "--n-ctx", 5)
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    assert rows["blocks.1.hook_resid_post"]["shape"] == [1, 5, D_MODEL]
    for layer in given.about.layers:
        assert rows[f"blocks.{layer}.attn.hook_z"]["shape"][:3] == [1, 5, N_HEADS]
        assert rows[f"blocks.{layer}.attn.hook_pattern"]["shape"] == [1, N_HEADS, 5, 5]


VERBS: dict[str, Callable[[Given], None]] = {
    "logits": check_logits,
    "topology": check_topology,
    "attention": check_attention,
    "ablate": check_ablate,
    "ablate, pairs": check_ablate_pairs,
    "ablate, mlps": check_ablate_mlps,
    "harvest": check_harvest,
    "sae-train, atlas, match": check_saes,
    "compare": check_compare,
    "spectra": check_spectra,
    "evaluate": check_evaluate,
    "probe": check_probe,
    "text-quality": check_text_quality,
    "generate": check_generate,
    "hooks": check_hooks,
}
NEED_HEADS = ("topology", "attention", "ablate", "ablate, pairs", "harvest", "sae-train, atlas, match")
# (verb, architecture) -> what is run there instead, part of the one line
REFUSED: dict[tuple[str, str], tuple[str, str]] = {
    **{("ablate, mlps", name): ("ablate --components mlp", "hook_mlp_out' does not exist") for name in
       ("granitemoehybrid", "mamba")},
    ("topology", "mamba"): ("topology", "hook 'blocks.0.attn.hook_pattern' does not exist; nearest"),
    ("attention", "mamba"): ("attention", "hook 'blocks.0.attn.hook_pattern' does not exist; nearest"),
    ("ablate", "mamba"): ("ablate", "hook 'blocks.0.attn.hook_z' does not exist; nearest"),
    ("ablate, pairs", "mamba"): ("ablate --pairs within", "hook 'blocks.0.attn.hook_z' does not exist; nearest"),
    ("harvest", "mamba"): ("harvest --layers 0", "hook 'blocks.0.attn.hook_z' does not exist; nearest"),
    ("sae-train, atlas, match", "mamba"): ("sae-train", "hook 'blocks.0.attn.hook_z' does not exist; nearest"),
    ("spectra", "mamba"): ("spectra", "no weight matrix of attention or an MLP by name"),
}  # fmt: skip
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_gives_the_right_value_or_says_in_one_line_what_lacks(verb, name, given_of, record_property):
    given = given_of(name)
    if (verb, name) not in REFUSED:
        VERBS[verb](given)
        record_property(f"{verb} × {name}", "right")
        return
    options, line = REFUSED[verb, name]
    reads = [] if verb == "spectra" else ["--data", given.folder.parent / "text.txt", "--n-ctx", LENGTH]
    refuse(line, *options.split(), "--ckpt", given.folder, *reads, "--out", "x")
    record_property(f"{verb} × {name}", line)


def refuse(line: str, *arguments: Any) -> str:
    """The one error line of a verb that fails."""
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    errors = [own for own in result.stderr.splitlines() if not own.startswith("warning: ")]
    assert len(errors) == 1, result.stderr
    assert line in errors[0]
    return errors[0]


# --- what is refused of every such model

OURS = {
    "mechanisms --data {text}": "mechanisms: mixtral-seed0 has no depth recurrence",
    "export --to hf": "export: got mixtral, a model by the generic path, whose weights have no names here",
    "export --to transformer-lens": "export: got mixtral, a model by the generic path",
    "evaluate --use-int8 --data {text}": "evaluate with int8 weights: got mixtral, a model by the generic path",
    "topology --dry-run": "goes by the generic path, of which no plan is made; expected no --dry-run",
    "topology --layers 5 --data {text} --n-ctx 24": "layers: got 5; expected 0…1",
    "attention --n-ctx 65 --data {text}": "n_ctx: got 65; expected 2 to the model's n_ctx = 64",
}


@pytest.mark.parametrize("verb", OURS)
def test_what_needs_a_model_of_a_family_is_refused_in_one_line(verb, given_of, record_property):
    given = given_of("mixtral")
    arguments = verb.format(text=given.folder.parent / "text.txt").split()
    line = refuse(OURS[verb], *arguments, "--ckpt", given.folder)
    record_property(verb, line)


def test_an_import_is_refused_in_one_line(given_of):
    refuse("import: got mixtral, a model by the generic path", "import", given_of("mixtral").folder, "--out", "x")


def test_it_is_said_once_in_one_line(given_of):
    folder = given_of("mixtral").folder
    with pytest.warns(GenericPathWarning) as caught:
        model = load(folder, "cpu")
    assert isinstance(model, Generic)
    said = f"{folder}: model_type 'mixtral' has no family file; generic path by TransformerLens's bridge, slower"
    assert [str(own.message) for own in caught] == [said]


def test_effective_sizes_of_models_by_the_generic_path(given_of):
    given = given_of("mixtral")
    shutil.copytree(given.folder, "again")
    out = given.run("topology", "--ckpt", "again", *N_TOKENS)
    sizes = read_table(out, "effective_size")
    assert set(sizes["n_parameters"]) == {given.model.cfg.n_parameters}
    # token table and unembedding are all that is left out
    assert set(sizes["n_parameters_no_embedding"]) == {given.model.cfg.n_parameters - 2 * D_VOCAB * D_MODEL}


def test_texts_begin_as_the_tokenizer_says_and_not_with_bos(given_of):
    given = given_of("mixtral")
    settings = json.loads((given.folder / "tokenizer_config.json").read_text())
    ids = given.model.tokenizer.encode("The cat", add_special_tokens=False)
    assert given.model.to_tokens("The cat").tolist() == [[0, *ids]]
    assert given.model.cfg.default_prepend_bos
    shutil.copytree(given.folder, "none")
    Path("none/tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": False}))
    tokenizer = Tokenizer.from_file("none/tokenizer.json")
    tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save("none/tokenizer.json")
    model = load("none", "cpu")
    assert model.to_tokens("The cat").tolist() == [ids], "TransformerLens would put <|endoftext|> before it"
    assert model.to_tokens("The cat", prepend_bos=True).tolist() == [[0, *ids]]
    assert not model.cfg.default_prepend_bos
    assert model.to_str_tokens("The cat") == [model.tokenizer.decode([i]) for i in ids]


def test_weights_keep_their_dtype_or_take_the_one_asked_for(given_of, tmp_path):
    config, settings = ARCHITECTURES["mixtral"].config, ARCHITECTURES["mixtral"].settings
    build(config, settings).to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    tokens = torch.arange(12)[None]
    narrow, wide = load(tmp_path / "narrow", "cpu"), load(tmp_path / "narrow", "cpu", "float32")
    assert (narrow.cfg.dtype, wide.cfg.dtype) == (torch.bfloat16, torch.float32)
    with torch.no_grad():
        wanted = Plain(tmp_path / "narrow", ARCHITECTURES["mixtral"]).model.float()(tokens).logits
        torch.testing.assert_close(wide(tokens), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"mixtral: is of torch.bfloat16; expected torch.float32 given when it is"):
        narrow.to(dtype=torch.float32)


def test_an_ablation_runs_in_float32_and_measures_what_a_narrower_dtype_costs(given_of, tmp_path):
    about = ARCHITECTURES["bloom"]
    build(about.config, about.settings).to(torch.bfloat16).save_pretrained(tmp_path / "x")
    model, plain = load(tmp_path / "x", "cpu"), Plain(tmp_path / "x", about)
    plain.model.float()
    tokens = given_of("bloom").tokens
    table = ablate(model, tokens, [1], n_bootstrap=100)
    losses = [float(plain.losses(tokens, {("z", 1): without(head)})[0].mean()) for head in range(N_HEADS)]
    np.testing.assert_allclose(table["ablated_loss"], losses, rtol=1e-5)
    assert table["dtype"].unique().tolist() == ["float32"]
    assert table["error_pct"].isna().all()
    narrow = ablate(model, tokens, [1], n_bootstrap=100, dtype="bfloat16")
    wanted = np.abs(narrow["impact_pct"] - table["impact_pct"])  # all sequences fit into the batches that are checked
    assert wanted.max() > 1e-3
    np.testing.assert_allclose(narrow["error_pct"], wanted, atol=1e-4)


# --- folders that cannot be taken


@pytest.mark.parametrize("name", WRONG)
def test_an_architecture_that_the_bridge_gets_wrong_is_refused_in_one_line(name, tmp_path):
    config, settings, line = WRONG[name]
    write_folder(tmp_path / "x", config, settings)
    refuse(line, "hooks", "--ckpt", tmp_path / "x")


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model_type": "nonsense"}, "model_type = 'nonsense': neither a family here (gemma, "),
        ({"num_attention_heads": "four"}, "config.json: transformers refuses it"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight is unknown"),
        ({"hidden_size": 40}, "has shape [300, 32], expected [300, 40]"),
        ({"quantization_config": {"quant_method": "nonsense"}}, "weights quantized by nonsense; expected one of"),
        ({"quantization_config": 4}, "config.json: transformers refuses it (AttributeError"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(changes, line, given_of, tmp_path):
    shutil.copytree(given_of("mixtral").folder, tmp_path / "x")
    edit_config(tmp_path / "x", **changes)
    refuse(line, "hooks", "--ckpt", tmp_path / "x")


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "vptq"])
def test_a_quantizer_that_is_not_installed_is_named_in_one_line(method, tmp_path):
    config = ARCHITECTURES["seed_oss"]
    write_folder(tmp_path / "x", config.config, config.settings)
    edit_config(tmp_path / "x", quantization_config={"quant_method": method, "bits": 4})
    refuse(f"transformers cannot read weights quantized by {method} (ImportError", "hooks", "--ckpt", tmp_path / "x")


def test_weights_that_are_not_finite_are_refused(given_of, tmp_path):
    shutil.copytree(given_of("mixtral").folder, tmp_path / "x")
    tensors = load_file(tmp_path / "x/model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tmp_path / "x/model.safetensors", metadata={"format": "pt"})
    refuse("model.norm.weight has NaN or inf; expected finite weights", "hooks", "--ckpt", tmp_path / "x")


def test_a_shard_that_is_missing_is_named(given_of, tmp_path):
    shutil.copytree(given_of("mixtral").folder, tmp_path / "x")
    (tmp_path / "x/model.safetensors").rename(tmp_path / "x/model-00001-of-00002.safetensors")
    names = list(load_file(tmp_path / "x/model-00001-of-00002.safetensors"))
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors") | {"z": "model-00002-of-00002.s"}}
    (tmp_path / "x/model.safetensors.index.json").write_text(json.dumps(index))
    refuse("lists 'z' in model-00002-of-00002.s, which is not there", "hooks", "--ckpt", tmp_path / "x")


def test_weights_of_8_bits_go_through_transformers_own_quantizer(tmp_path):
    """Blocks of fp8 with a scale each, which transformers unpacks where there is no GPU: a family's folder, too."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    folder = write_folder(tmp_path / "x", "LlamaConfig", sizes | {"vocab_size": D_VOCAB, "initializer_range": 0.3})
    tensors, unpacked = load_file(folder / "model.safetensors"), {}
    for name, weight in list(tensors.items()):
        if name.endswith("proj.weight"):
            blocks = weight.unflatten(1, (-1, 16)).unflatten(0, (-1, 16))
            scale = blocks.abs().amax((1, 3)) / 448
            tensors[name] = (blocks / scale[:, None, :, None]).flatten(2, 3).flatten(0, 1).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale
            packed = tensors[name].float().unflatten(1, (-1, 16)).unflatten(0, (-1, 16))
            unpacked[name] = (packed * scale[:, None, :, None]).flatten(2, 3).flatten(0, 1)
        else:
            unpacked[name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    with pytest.warns(GenericPathWarning, match="weights quantized by fp8; generic path"):
        model = load(folder, "cpu")
    wanted = build("LlamaConfig", sizes | {"vocab_size": D_VOCAB})
    wanted.load_state_dict(unpacked, strict=False)
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), wanted(tokens).logits, rtol=1e-3, atol=1e-3)
