"""Public functions: one number where a list of numbers is meant is that list; a string is refused, never spelt out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "workbench"))
from models_for_tests import small_model
from random_pairs_for_tests import pairs_for
from saes_for_tests import stack_for

import probes
import reports
import sae
import workbench
from workbench.analyses.ladder import rungs
from workbench.data.batteries import PromptSet, read_prompts
from workbench.data.pairs import PairTokens
from workbench.data.tokenizer import load_tokenizer, vocabulary_size
from workbench.models.activations import choose_slots
from workbench.models.tokenizer_files import wrap_tokenizer

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

MODEL = small_model("janus-v3", n_layers=2)
TOKENS = torch.randint(0, MODEL.cfg.d_vocab, (6, 8), generator=torch.Generator().manual_seed(0))
PAIRS = PairTokens("made", TOKENS, TOKENS.flip(0), TOKENS >= 0, TOKENS[:, :1], TOKENS[:, :1] - 1, TOKENS[:, 0])
ONE = sae.StackedSAE(sae.SAEConfig(n_saes=1, d_in=4, d_sae=6), torch.Generator().manual_seed(0))
CENTRED = sae.SAEConfig(n_saes=1, d_in=4, d_sae=6, b_dec_init="mean")
ACTIVATIONS = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(0))
SMALL = {"batch_size": 8, "buffer_tokens": 16, "n_ce_tokens": 16, "expansion": 2, "n_train_tokens": None}
SPEAKER = small_model("janus-v3", n_layers=1, d_vocab=vocabulary_size(load_tokenizer("embedded")), n_ctx=32)
SPEAKER.tokenizer = wrap_tokenizer(load_tokenizer("embedded"))
TRAIN = sae.TrainConfig(n_steps=1)
PAIRS = pairs_for(MODEL, n=4)
SAES = stack_for(MODEL, choose_slots(MODEL.cfg, [0, 1], [0, 1]), dtype=torch.float32)


def effects(layers: Any = None, heads: Any = None) -> str:
    return workbench.feature_effects(MODEL, SAES, TOKENS, layers, heads, n_exact=1, n_bootstrap=100).to_csv()


def patching(layers: Any = None, heads: Any = None) -> str:
    return workbench.patch(MODEL, PAIRS, layers=layers, heads=heads, n_bootstrap=100).to_csv()


def scores(layers: Any = None, heads: Any = None) -> str:
    found = workbench.sae_scores(MODEL, SAES, TOKENS, layers, heads, parts=["core"], n_bootstrap=100)
    return found["sae_core"].to_csv()


def shares(layers: Any = None, heads: Any = None) -> str:
    own = stack_for(SPEAKER, choose_slots(SPEAKER.cfg, [0], [0, 1]), dtype=torch.float32)
    found = workbench.content_share(SPEAKER, own, ["the king"], layers, heads, n_permutations=9, n_bootstrap=100)
    return found["content_share"].to_csv()


def trainer(l1: Any = 1.0, index: Any = None) -> object:
    return sae.Trainer(ONE, TRAIN, l1, torch.Generator(), input_index=index)._l1.tolist()


# the functions and their parameters typed as lists of numbers -> a call with the value
CALLS: dict[str, Callable[[Any], object]] = {
    "workbench.ablate.layers": lambda x: workbench.ablate(MODEL, TOKENS, x).to_csv(),
    "workbench.ablate.heads": lambda x: workbench.ablate(MODEL, TOKENS, None, x).to_csv(),
    "workbench.attention.layers": lambda x: workbench.attention(MODEL, TOKENS, x).to_csv(),
    "workbench.attention_patterns.layers": lambda x: workbench.attention_patterns(MODEL, TOKENS, x).to_csv(),
    "workbench.attribute.layers": lambda x: workbench.attribute(MODEL, PAIRS, ["exact"], ["z"], x)[
        "attribution"
    ].to_csv(),
    "workbench.paths.layers": lambda x: workbench.paths(MODEL, PAIRS, ["logits"], x).to_csv(),
    "workbench.paths.heads": lambda x: workbench.paths(MODEL, PAIRS, ["logits"], None, x).to_csv(),
    "workbench.topology.layers": lambda x: workbench.topology(MODEL, TOKENS, x).to_csv(),
    "workbench.feature_effects.layers": effects,
    "workbench.feature_effects.heads": lambda x: effects(heads=x),
    "workbench.content_share.layers": shares,
    "workbench.content_share.heads": lambda x: shares(heads=x),
    "workbench.patch.layers": patching,
    "workbench.patch.heads": lambda x: patching(heads=x),
    "workbench.sae_scores.layers": scores,
    "workbench.sae_scores.heads": lambda x: scores(heads=x),
    "workbench.sae_train.layers": lambda x: workbench.sae_train(MODEL, TOKENS, x, [0], **SMALL)[1].to_csv(),
    "workbench.sae_train.heads": lambda x: workbench.sae_train(MODEL, TOKENS, [0], x, **SMALL)[1].to_csv(),
    "workbench.sae_train.l1": lambda x: workbench.sae_train(MODEL, TOKENS, [0], [0], l1=x, **SMALL)[1].to_csv(),
    "workbench.sae_train.seeds": lambda x: workbench.sae_train(MODEL, TOKENS, [0], [0], seeds=x, **SMALL)[1].to_csv(),
    "workbench.probe.seeds": lambda x: workbench.probe(
        SPEAKER, ["seasons"], n_points=0, n_permutations=9, seeds=x
    ).concept_mantel.to_csv(),
    "workbench.ladder.seeds": lambda x: workbench.ladder("recurrent-nano", ["text"], "out", seeds=x).to_csv(),
    "sae.StackedSAE.input_index": lambda x: sae.StackedSAE(
        CENTRED, torch.Generator().manual_seed(1), data=ACTIVATIONS, input_index=x
    ).b_dec.tolist(),
    "sae.Trainer.l1": trainer,
    "sae.Trainer.input_index": lambda x: trainer(index=x),
    "sae.loss_and_gradients.input_index": lambda x: sae.loss_and_gradients(
        ONE, ACTIVATIONS, torch.ones(1), x
    ).squared_error.tolist(),
    "sae.find_absorbed.main": lambda x: sae.find_absorbed(
        torch.eye(3), torch.eye(3), torch.eye(3), torch.ones(3), x
    ).feature.tolist(),
    "sae.random_dictionary.l0": lambda x: sae.random_dictionary(
        ONE.config, ACTIVATIONS, x, torch.Generator().manual_seed(1)
    ).b_enc.tolist(),
}


def listed() -> set[str]:
    """The parameters of public functions and classes that are typed as lists of numbers."""
    found = set()
    for package in (workbench, probes, sae, reports):
        for name in getattr(package, "__all__", ()):
            function = getattr(package, name)
            if callable(function) and not (isinstance(function, type) and issubclass(function, Exception)):
                for parameter in inspect.signature(function).parameters.values():
                    kinds = str(parameter.annotation)
                    if "Sequence[int]" in kinds.replace("Sequence[Sequence[int]]", "") or "Sequence[float]" in kinds:
                        found.add(f"{package.__name__}.{name}.{parameter.name}")
    return found


def test_every_such_parameter_is_called() -> None:
    assert listed() == CALLS.keys()


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The ladder's fourteen trainings are left out: that it comes so far is what matters here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rungs, "ladder_recipes", lambda recipe: [])


@pytest.mark.filterwarnings("ignore")  # of so few tokens
@pytest.mark.parametrize("name", list(CALLS))
def test_a_number_is_a_list_of_one_and_a_string_is_refused(name: str) -> None:
    value = 1 if name in ("sae.Trainer.l1", "sae.random_dictionary.l0") else 0
    assert CALLS[name](value) == CALLS[name]([value])
    for text in ("0", "01"):
        with pytest.raises(ValueError, match=r"got (the string )?'01?'.*expected") as caught:
            CALLS[name](text)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: workbench.ablate_pairs(MODEL, TOKENS, [(0, 1)]), "pairs: got (0, 1); expected ((layer, head), (layer"),
        (lambda: workbench.ablate_pairs(MODEL, TOKENS, ((0, 1), (0, 2))), "pairs: got (0, 1); expected ((layer, head)"),
        (lambda: workbench.ablate_pairs(MODEL, TOKENS, "0.1"), "pairs: got the string '0.1'; expected a list"),
        (
            lambda: workbench.ablate_pairs(MODEL, TOKENS, [((0, "a"), (0, 1))]),
            "pairs: got ((0, 'a'), (0, 1)); expected",
        ),
        (lambda: workbench.probe(MODEL, names="ab"), "names: got the string 'ab'; expected a list"),
        (
            lambda: workbench.probe(SPEAKER, ["seasons"], n_points=0, templates="{X}"),
            "templates: got the string '{X}'; expected",
        ),
        (lambda: workbench.compare(MODEL, MODEL, TOKENS, names="ab"), "names: got the string 'ab'; expected a list"),
        (
            lambda: workbench.compare(MODEL, MODEL, TOKENS, seeds=0),
            "names, seeds: got 2 and 1 for two models; expected",
        ),
        (lambda: workbench.text_quality(MODEL, "Once", tagger="none"), "prompts: got 'Once'; expected a list of texts"),
        (
            lambda: workbench.text_quality(MODEL, ["Once "], tagger="none"),
            "prompts: got 'Once '; expected text without",
        ),
        (lambda: workbench.text_quality(MODEL, [3], tagger="none"), "prompts: got [3]; expected a list of texts"),
        (lambda: workbench.text_quality(MODEL, recall="a.toml", tagger="none"), "recall: got 'a.toml'; expected what"),
    ],
)
def test_what_is_meant_is_said(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert str(caught.value).startswith(message)


def test_texts_are_prompts() -> None:
    from workbench.data.batteries import as_prompts

    sets = read_prompts()
    assert as_prompts(sets) == sets
    assert as_prompts(["Once", sets[0], "Then"]) == (sets[0], PromptSet(kind="custom", prompts=("Once", "Then")))
