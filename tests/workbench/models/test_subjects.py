"""Every analysis on every kind of subject: the value that plain module hooks give, or one line that says what lacks.

A new analysis is one entry of `ANALYSES`, a new subject one of `subjects_for_tests`; what cannot be measured is in
`REFUSED`, and everything else has to be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model, tokens_for
from scipy.stats import spearmanr
from subjects_for_tests import HOOKED, N_HEADS, N_LAYERS, SUBJECTS, Subject, subject

import probes
from workbench.analyses.ablate.ablation import ablate
from workbench.analyses.ablate.pairs import ablate_pairs
from workbench.analyses.attention.statistics import attention, repeated_random_tokens
from workbench.analyses.compare.comparison import compare, mean_pooled
from workbench.analyses.evaluate.bits import encode_text, evaluate
from workbench.analyses.harvest.storing import harvest
from workbench.analyses.mechanisms.switches import mechanisms
from workbench.analyses.probe.concept_tests import probe
from workbench.analyses.probe.states import build_prompts
from workbench.analyses.text_quality.quality import text_quality
from workbench.analyses.topology.heads import head_cosines, topology
from workbench.data.concepts import ConceptSet
from workbench.data.shards import read_shards
from workbench.models.checks import run_hooked
from workbench.models.generate import generate
from workbench.models.interop import export
from workbench.models.load import load
from workbench.models.streams import stream
from workbench.models.transformer_lens import from_hooked_transformer, to_hooked_transformer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:topology. (48|60) tokens:probes.SmallSampleWarning"),
    pytest.mark.filterwarnings("ignore:topology. what heads write:workbench.analyses.topology.heads.ResidualWarning"),
]
NORMED = ("gemma-2", "gemma-3", "olmo-2")  # a norm stands behind attention: the stream does not get z W_O

CLOSE = {"rtol": 2e-4, "atol": 2e-4}  # two implementations in float32; impacts are per cent of a loss of 7


def without(which: int | slice) -> Callable[[torch.Tensor], torch.Tensor]:
    """Takes heads out of z."""

    def edit(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[:, :, which] = 0
        return z

    return edit


def meaned(head: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Puts the mean over sequences and positions in a head's place."""

    def edit(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[:, :, head] = z[:, :, head].mean((0, 1))
        return z

    return edit


def check_impacts(given: Subject, table: pd.DataFrame, edits: list[dict]) -> None:
    """A row an edit: its losses, and the divergence of its prediction from the clean one."""
    with torch.no_grad():
        base, clean = given.reading.losses(given.tokens)
        assert len(table) == len(edits) > 0
        for row, edit in zip(table.itertuples(), edits, strict=True):
            losses, log_p = given.reading.losses(given.tokens, edit)
            kl = (clean.exp() * (clean - log_p)).sum(-1).mean()
            wanted = [base.mean(), losses.mean(), 100 * (losses.mean() / base.mean() - 1), kl]
            found = [row.base_loss, row.ablated_loss, row.impact_pct, row.kl]
            np.testing.assert_allclose(found, wanted, **CLOSE, err_msg=str(row))
    assert (table["impact_pct"].abs() > 0).all()
    assert (table["ci_low"] < table["ci_high"]).all()


def ablate_heads(given: Subject) -> None:
    table = ablate(given.model, given.tokens, given.layers, n_bootstrap=100)
    check_impacts(given, table, [{("z", layer): without(h)} for layer in given.layers for h in range(N_HEADS)])
    estimates = iter(table["estimate_pct"])
    base = given.reading.losses(given.tokens)[0].mean()
    for layer in given.layers:
        scale = torch.ones(N_HEADS, 1, requires_grad=True)
        with given.reading.editing({("z", layer): lambda z, scale=scale: z * scale}):
            log_p = torch.log_softmax(given.reading.logits_of(given.tokens).double(), -1)
        loss = -log_p[:, :-1].gather(-1, given.tokens[:, 1:, None]).mean()
        (slope,) = torch.autograd.grad(loss, scale)
        wanted = -100 * slope[:, 0] / base.detach()
        np.testing.assert_allclose([next(estimates) for _ in range(N_HEADS)], wanted, **CLOSE)


def ablate_means(given: Subject) -> None:
    table = ablate(given.model, given.tokens, given.layers, kind="mean", has_estimate=False, n_bootstrap=100)
    check_impacts(given, table, [{("z", layer): meaned(h)} for layer in given.layers for h in range(N_HEADS)])


def ablate_layers(given: Subject) -> None:
    table = ablate(given.model, given.tokens, given.layers, components=["layer"], n_bootstrap=100)
    check_impacts(given, table, [{("z", layer): without(slice(None))} for layer in given.layers])


def ablate_mlps(given: Subject) -> None:
    table = ablate(given.model, given.tokens, components=["mlp"], n_bootstrap=100)
    check_impacts(given, table, [{("mlp", layer): torch.zeros_like} for layer in range(N_LAYERS)])
    table = ablate(given.model, given.tokens, [0], components=["mlp"], kind="mean", n_bootstrap=100)
    check_impacts(given, table, [{("mlp", 0): lambda x: x.mean((0, 1)).expand_as(x)}])


def ablate_heads_of_every_layer(given: Subject) -> None:
    assert len(ablate(given.model, given.tokens, heads=[1], n_bootstrap=100)) == N_LAYERS


def pairs(given: Subject) -> None:
    first, last = given.layers[0], given.layers[-1]
    chosen = [((first, 0), (last, 2)), ((first, 0), (first, 3))]
    table = ablate_pairs(given.model, given.tokens, chosen, n_bootstrap=100)
    assert len(table) == 2
    for row in table.itertuples():
        edits: dict = {}
        for layer, head in ((row.layer_a, row.head_a), (row.layer_b, row.head_b)):
            before, own = edits.get(("z", layer), lambda z: z), without(head)
            edits["z", layer] = lambda z, before=before, own=own: own(before(z))
        with torch.no_grad():
            base, both = (given.reading.losses(given.tokens, e)[0].mean() for e in ({}, edits))
        np.testing.assert_allclose(row.joint_pct, 100 * (both / base - 1), **CLOSE)


def topology_in_all_bases(given: Subject) -> None:
    table = head_cosines(given.model, given.tokens, given.layers)
    maps = given.reading.attentions_of(given.tokens)
    for layer in given.layers:
        (z,), pattern = given.reading.seen(given.tokens, ("z", layer)), maps[layer]
        assert pattern is not None
        vectors = {
            "z": z.movedim(2, 0).flatten(1),
            "pattern": pattern.movedim(1, 0).flatten(1),
            "residual": torch.einsum("bpha,had->hbpd", z, given.reading.W_O[layer]).flatten(1),
        }
        if given.name in NORMED:
            assert table["basis"].unique().tolist() == ["z", "pattern"]
            del vectors["residual"]
        for basis, rows in vectors.items():
            rows = torch.nn.functional.normalize(rows.double())
            at = table[(table["layer"] == layer) & (table["basis"] == basis)]
            found = at.pivot_table(index="head_i", columns="head_j", values="cos").to_numpy()
            np.testing.assert_allclose(found, rows @ rows.T, atol=1e-5, err_msg=f"{layer} {basis}")


def attention_of_text_and_repeats(given: Subject) -> None:
    table = attention(given.model, given.tokens, given.layers, n_repeated=2, seed=7)
    twice = repeated_random_tokens(given.model, 2, given.model.cfg.n_ctx // 2, 7)
    on_text, on_twice = given.reading.attentions_of(given.tokens), given.reading.attentions_of(twice)
    n = twice.shape[1] // 2
    for row in table.itertuples():
        text, repeats = (maps[row.layer][:, row.head].double() for maps in (on_text, on_twice))
        wanted = {
            "entropy": torch.special.entr(text).sum(-1).mean(),
            "bos_mass": text[:, 1:, 0].mean(),
            "induction": torch.stack([repeats[:, n + i, i + 1] for i in range(n)]).mean(),
            "previous_token": torch.stack([repeats[:, i, i - 1] for i in range(1, 2 * n)]).mean(),
        }
        for column, value in wanted.items():
            assert getattr(row, column) == pytest.approx(float(value), abs=1e-5), (row.layer, row.head, column)
    assert len(table) == len(given.layers) * N_HEADS


def attention_of_every_layer(given: Subject) -> None:
    assert (attention(given.model, given.tokens, n_repeated=0)["entropy"] > 0).all()


def streamed(given: Subject) -> None:
    layer = given.layers[-1]
    places = {
        "hook_embed": ("embed", 0),
        f"blocks.{layer}.attn.hook_z": ("z", layer),
        f"blocks.{layer}.hook_resid_post": ("post", layer),
        "blocks.0.hook_resid_post": ("post", 0),
    }
    found = next(stream(given.model, given.tokens, list(places)))
    for name, wanted in zip(places, given.reading.seen(given.tokens, *places.values()), strict=True):
        torch.testing.assert_close(found[name].flatten(2), wanted.flatten(2), rtol=1e-4, atol=1e-4, msg=name)
    name = f"blocks.{layer}.attn.hook_pattern"
    pattern = next(stream(given.model, given.tokens, [name]))[name]
    torch.testing.assert_close(pattern, given.reading.attentions_of(given.tokens)[layer], rtol=1e-4, atol=1e-5)


def streamed_mlp_outputs(given: Subject) -> None:
    names = {f"blocks.{layer}.hook_mlp_out": ("mlp", layer) for layer in range(N_LAYERS)}
    found = next(stream(given.model, given.tokens, list(names)))
    for name, place in names.items():
        (wanted,) = given.reading.seen(given.tokens, place)
        torch.testing.assert_close(found[name], wanted.view_as(found[name]), rtol=1e-4, atol=1e-4, msg=name)


def harvested(given: Subject, tmp_path) -> None:
    layer = given.layers[-1]
    name = f"blocks.{layer}.attn.hook_z"
    harvest(given.model, given.tokens, [name], tmp_path / "harvest")
    (wanted,) = given.reading.seen(given.tokens, ("z", layer))
    n = 0
    for part in read_shards(tmp_path / "harvest"):
        n += len(part["token"])
        torch.testing.assert_close(part[name], wanted[part["sequence"], part["position"]], rtol=1e-4, atol=1e-4)
    assert n == given.tokens.numel()


def compared(given: Subject) -> None:
    other = small_model("janus-v3", d_vocab=given.model.cfg.d_vocab)
    found = compare(given.model, other, given.tokens, n_components=2, names=("a", "b"))
    places = [("embed", 0), *(("post", layer) for layer in range(N_LAYERS))]
    wanted = [x[:, 1:].double().mean(1).numpy() for x in given.reading.seen(given.tokens, *places)]
    np.testing.assert_allclose(mean_pooled(given.model, given.tokens), np.stack(wanted), rtol=1e-4, atol=1e-4)
    theirs = mean_pooled(other, given.tokens)
    alike = {-1: 0, 0: 1, 1: 3}  # state of the other, of three layers, that each layer of these two meets
    for layer, state in alike.items():
        rows = found.pc_cosine[found.pc_cosine["layer"] == layer]
        assert rows["cka"].iloc[0] == pytest.approx(probes.linear_cka(wanted[layer + 1], theirs[state]), abs=1e-4)
    own = found.weight_spectra[found.weight_spectra["model"] == "a"].set_index(["layer", "matrix"])
    named = {(layer, name) for layer, of_layer in enumerate(given.reading.matrices) for name in of_layer}
    assert set(own.index) == named
    for layer, name in named:
        ranks = probes.matrix_ranks(given.reading.matrices[layer][name].detach().double().numpy())
        assert own.loc[(layer, name), "nuclear_rank"] == pytest.approx(ranks.nuclear_rank, rel=1e-5), (layer, name)
    divergence = found.eigenspectra_divergence.set_index("part")["n"].to_dict()
    shared = {name: set() for name in ("attention", "mlp")}
    for layer, name in named & {(layer, name) for layer in range(N_LAYERS) for name in MATRICES}:
        shared["attention" if name in MATRICES[:4] else "mlp"].add((layer, name))
    assert divergence == {
        "attention": len(shared["attention"]), "mlp": len(shared["mlp"]), "all": sum(map(len, shared.values()))
    }  # fmt: skip


MATRICES = ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out")
TEXT = ["The cat saw it.", "A river"]


def evaluated(given: Subject) -> None:
    table = evaluate(given.model, TEXT, quantized=False, stride=8)
    text = encode_text(given.model.tokenizer, TEXT)
    assert 4 < len(text.tokens) <= given.model.cfg.n_ctx + 1, "one window reads all of it"
    with torch.no_grad():
        log_p = torch.log_softmax(given.reading.logits_of(text.tokens[None, :-1]).double(), -1)[0]
    nats = -log_p.gather(-1, text.tokens[1:, None])[:, 0][text.is_text[1:]].sum()
    wanted = float(nats) / math.log(2) / len("".join(TEXT).encode())
    np.testing.assert_allclose(table["bits_per_byte"], wanted, rtol=1e-5)


WORDS = ConceptSet(name="letters", category="c", topology="ordinal", words=tuple("bdfhk"))


def probed(given: Subject) -> None:
    found = probe(given.model, [WORDS], given.tokens, n_permutations=9, n_points=40, templates=["a {X}", "we {X}, so"])
    prompts, _ = build_prompts(given.model.tokenizer, [WORDS], ["a {X}", "we {X}, so"])
    places = [("embed", 0), *(("post", layer) for layer in range(N_LAYERS))]
    means = np.zeros((len(WORDS.words), len(places), given.model.cfg.d_model))
    for prompt in prompts:
        states = given.reading.seen(torch.tensor([prompt.tokens]), *places)
        means[prompt.word] += np.stack([x[0, prompt.stop - 1].double().numpy() for x in states]) / 2
    upper = np.triu_indices(len(WORDS.words), 1)
    target = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))[upper]
    for state in range(len(places)):
        between = np.linalg.norm(means[:, None, state] - means[None, :, state], axis=-1)[upper]
        r = found.concept_mantel.set_index("layer")["r"][state - 1]
        assert r == pytest.approx(spearmanr(between, target).statistic, abs=1e-6), state
    assert found.intrinsic_dimension["layer"].tolist() == [-1, 0, 1]
    assert np.isfinite(found.intrinsic_dimension["dimension"]).all()


ANALYSES: dict[str, Callable] = {
    "ablate heads": ablate_heads,
    "ablate heads, mean": ablate_means,
    "ablate layers": ablate_layers,
    "ablate mlps": ablate_mlps,
    "ablate, all layers": ablate_heads_of_every_layer,
    "ablate_pairs": pairs,
    "ablate_pairs, all": lambda given: ablate_pairs(given.model, given.tokens, n_bootstrap=100),
    "topology": topology_in_all_bases,
    "topology, all layers": lambda given: head_cosines(given.model, given.tokens),
    "attention": attention_of_text_and_repeats,
    "attention, all layers": attention_of_every_layer,
    "stream": streamed,
    "stream, mlps": streamed_mlp_outputs,
    "harvest": harvested,
    "compare": compared,
    "evaluate": evaluated,
    "probe": probed,
    # of a HookedLM alone
    "evaluate, int8": lambda given: evaluate(given.model, TEXT),
    "generate": lambda given: generate(given.model, given.tokens, 2, temperature=0),
    "text_quality": lambda given: text_quality(given.model, tagger="none"),
    "mechanisms": lambda given: mechanisms(given.model, TEXT),
    "export": lambda given: export(given.model, "hf", "nowhere"),
    "to_hooked_transformer": lambda given: to_hooked_transformer(given.model),
    "from_hooked_transformer": lambda given: from_hooked_transformer(given.model),
}
OURS = ("evaluate, int8", "generate", "text_quality", "mechanisms", "export", "to_hooked_transformer")
NO_HEADS = r"hook 'blocks\.0\.attn\.hook_\w+' does not exist; expected layers=\[1\], which have it"
# (analysis, subject) -> the line
REFUSED = {
    ("ablate mlps", "attention-only"): "components: got 'mlp' for a model of attention alone",
    ("ablate mlps", "granite"): r"has_estimate: no gradient reaches hook 'blocks\.0\.hook_mlp_out'",
    ("stream, mlps", "attention-only"): r"hook 'blocks\.0\.hook_mlp_out' exists but did not fire",
    **{
        (analysis, "lfm-2"): NO_HEADS
        for analysis in ("ablate, all layers", "ablate_pairs, all", "topology, all layers", "attention, all layers")
    },
    **{
        (analysis, name): f"got a {'HookedTransformer' if name in HOOKED else 'TransformerBridge'}; expected"
        for analysis in OURS
        for name in SUBJECTS
    },
    **{
        ("from_hooked_transformer", name): "got a TransformerBridge; expected a HookedTransformer"
        for name in SUBJECTS
        if name not in HOOKED
    },
    ("from_hooked_transformer", "attention-only"): "attn_only = True",
    ("from_hooked_transformer", "parallel"): "parallel_attn_mlp = True",
    ("from_hooked_transformer", "shortformer"): "positional_embedding_type = 'shortformer'",
}


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("analysis", ANALYSES)
def test_an_analysis_gives_the_right_value_or_says_in_one_line_what_lacks(analysis, name, tmp_path, record_property):
    given, run = subject(name), ANALYSES[analysis]
    arguments = (given, tmp_path) if run is harvested else (given,)
    line = REFUSED.get((analysis, name))
    if line is None:
        run(*arguments)
        record_property(f"{analysis} × {name}", "value")
        return
    with pytest.raises(ValueError, match=line) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    record_property(f"{analysis} × {name}", str(caught.value))


# --- the one way in which a subject is run


class Loop(torch.nn.Module):
    """A model whose one block runs twice, as a bridge may have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model("janus-v3")
        self.cfg, self.hook_dict = self.inner.cfg, self.inner.hook_dict

    def forward(self, tokens, **span):
        return self.inner(tokens)

    def run_with_hooks(self, tokens, fwd_hooks, **span):
        with self.inner.hooks(fwd_hooks=fwd_hooks):
            self.inner(tokens)
            return self.inner(tokens)


@pytest.mark.parametrize("analysis", [attention, head_cosines, ablate, lambda m, t: next(stream(m, t, ["hook_embed"]))])
def test_a_hook_that_fires_twice_is_not_counted_twice(analysis):
    model = Loop()
    with pytest.raises(ValueError, match="fired 2 times in one forward; expected one that this model's forward passes"):
        analysis(model, tokens_for(model.inner))


class Deaf(torch.nn.Module):
    """A model that shows hooks what passes, and does not read what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model("janus-v3")
        self.cfg, self.hook_dict = self.inner.cfg, self.inner.hook_dict

    def forward(self, tokens, **span):
        return self.inner(tokens, **span)

    def run_with_hooks(self, tokens, fwd_hooks, **span):
        heard = [(name, lambda x, hook, own=own: (own(x, hook), None)[1]) for name, own in fwd_hooks]
        return self.inner.run_with_hooks(tokens, fwd_hooks=heard, **span)


@pytest.mark.parametrize("analysis", [ablate, ablate_pairs])
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_a_hook_whose_value_is_not_read_is_no_impact_of_zero(analysis, kind):
    model = Deaf()
    tokens = tokens_for(model.inner)
    with pytest.raises(ValueError, match=r"hook 'blocks\.0\.attn\.hook_z' fires, but what it returns is not read"):
        analysis(model, tokens, kind=kind)
    assert (attention(model, tokens)["entropy"] > 0).all(), "what is only looked at is right"


def test_the_impact_of_an_mlp_that_no_gradient_reaches_is_measured_without_the_estimate():
    given = subject("granite")
    table = ablate(given.model, given.tokens, components=["mlp"], has_estimate=False, n_bootstrap=100)
    check_impacts(given, table, [{("mlp", layer): torch.zeros_like} for layer in range(N_LAYERS)])


def test_a_model_without_heads_is_compared_and_probed_and_refused_the_rest():
    given = subject("mamba")
    for analysis in (ablate, attention, head_cosines):
        with pytest.raises(ValueError, match=r"hook 'blocks\.0\.attn\.hook_(z|pattern)' does not exist; nearest"):
            analysis(given.model, given.tokens)
    with pytest.raises(ValueError, match=r"hook 'blocks\.0\.hook_mlp_out' does not exist; nearest"):
        ablate(given.model, given.tokens, components=["mlp"])
    with pytest.raises(ValueError, match="pairs: got none"):
        ablate_pairs(given.model, given.tokens)
    compared(given)
    probed(given)
    evaluated(given)


def test_logits_of_something_else_than_the_vocabulary_are_refused():
    class Classifier(Deaf):
        def forward(self, tokens, **span):
            return self.inner(tokens)[..., :5]

    with pytest.raises(ValueError, match=r"logits: got shape \[2, 16, 5\]; expected \[2, 16, 61\]"):
        run_hooked(Classifier(), tokens_for(small_model("janus-v3")), [], return_type="logits")


def test_a_forward_that_fails_is_named_in_one_line():
    class Broken(Deaf):
        def run_with_hooks(self, tokens, fwd_hooks, **span):
            raise RuntimeError("nothing\n  of it")

    with pytest.raises(ValueError, match=r"^Broken: its forward failed with RuntimeError: nothing of it$"):
        ablate(Broken(), tokens_for(small_model("janus-v3")), components=["mlp"])


@pytest.mark.parametrize(
    ("name", "shown", "line"),
    [
        ("blocks.0.attn.hook_z", lambda z: z.flatten(2), r"hook_z': got shape \[2, 16, 32\]; expected \[2, 16, 4, …\]"),
        ("blocks.0.attn.hook_pattern", lambda p: p[:, :2], r"got shape \[2, 2, 16, 16\]; expected \[2, 4, 16, 16\]"),
        ("blocks.0.hook_resid_post", lambda x: x[..., :5], r"got shape \[2, 16, 5\]; expected \[2, 16, 32\]"),
        ("blocks.0.hook_mlp_out", lambda x: (x, None), "got a tuple; expected a tensor"),
    ],
)
def test_a_hook_that_shows_something_else_is_refused(name, shown, line):
    model = small_model("janus-v3")

    class Other(torch.nn.Module):
        cfg, hook_dict = model.cfg, model.hook_dict

        def run_with_hooks(self, tokens, fwd_hooks, **span):
            wrapped = [(n, lambda x, hook, f=f: f(shown(x), hook)) for n, f in fwd_hooks]
            return model.run_with_hooks(tokens, fwd_hooks=wrapped, **span)

    with pytest.raises(ValueError, match=line):
        run_hooked(Other(), tokens_for(model), [(name, lambda x, hook: None)])


def test_a_hook_behind_a_switch_is_refused_in_one_line():
    given = subject("plain")
    with pytest.raises(ValueError, match=r"hook 'blocks.0.attn.hook_result' exists but did not fire"):
        next(stream(given.model, given.tokens, ["blocks.0.attn.hook_result"]))
    with pytest.raises(ValueError, match="use_attn_result"):
        next(stream(subject("qwen-3").model, given.tokens, ["blocks.0.attn.hook_result"]))


@pytest.mark.parametrize("name", ["opt", "gpt-j"])
def test_a_bridge_is_left_with_the_kernels_it_had(name):
    given = subject(name)
    inner = given.model.original_model
    before = inner.config._attn_implementation
    assert before == "sdpa"
    attention(given.model, given.tokens)
    assert inner.config._attn_implementation == before
    with pytest.raises(ValueError, match="TransformerBridge: its forward failed with RuntimeError: stopped"):
        run_hooked(given.model, given.tokens, [("blocks.0.attn.hook_pattern", _stop)])
    assert inner.config._attn_implementation == before


@pytest.mark.parametrize("analysis", [ablate_heads, attention_of_text_and_repeats, streamed, evaluated, compared])
def test_nothing_is_dropped_out_of_a_bridge_in_training_mode(analysis):
    given = subject("gpt-j")
    inner = given.model.original_model
    inner.train()
    dropouts = [m for m in inner.modules() if isinstance(m, torch.nn.Dropout)]
    before = [m.p for m in dropouts]
    try:
        for module in dropouts:
            module.p = 0.5
        dropouts[0].training = False  # a mode of its own, to be kept
        assert not torch.equal(given.model(given.tokens), given.model(given.tokens))
        analysis(given)
        assert inner.training
        assert [m.training for m in dropouts] == [False] + [True] * (len(dropouts) - 1)
    finally:
        inner.eval()
        for module, p in zip(dropouts, before, strict=True):
            module.p = p


def _stop(tensor, hook):
    raise RuntimeError("stopped")


# --- GPT-2 as a bridge, and as our model

Z, RESID = "blocks.0.attn.hook_z", "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A small random GPT-2 as a bridge, and as our model."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=24, vocab_size=61, initializer_range=0.3)
    folder = tmp_path_factory.mktemp("gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return load(folder), TransformerBridge.boot_transformers(str(folder), hf_model=model)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 61, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_ablation(pair, tokens, kind):
    ours, theirs = (ablate(model, tokens, kind=kind, n_bootstrap=100) for model in pair)
    for column in ("layer", "head", "base_loss", "impact_pct", "stderr", "ci_low", "ci_high", "kl"):
        # two implementations in float32; impacts are some per cent
        np.testing.assert_allclose(ours[column], theirs[column], atol=2e-4, err_msg=column)


def test_topology_and_attention(pair, tokens):
    ours, theirs = (topology(model, tokens) for model in pair)
    np.testing.assert_allclose(ours[["max_cos", "mean_cos"]], theirs[["max_cos", "mean_cos"]], atol=1e-5)
    ours, theirs = (attention(model, tokens, n_repeated=0) for model in pair)
    np.testing.assert_allclose(ours[["entropy", "bos_mass"]], theirs[["entropy", "bos_mass"]], atol=1e-5)


def test_stream_and_harvest(pair, tokens, tmp_path):
    ours, theirs = (next(stream(model, tokens, [Z, RESID])) for model in pair)
    for name in (Z, RESID):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4)
    harvest(pair[1], tokens, [Z], tmp_path / "h")
    part = next(read_shards(tmp_path / "h"))
    torch.testing.assert_close(part[Z], ours[Z][part["sequence"], part["position"]], atol=1e-4, rtol=1e-4)
