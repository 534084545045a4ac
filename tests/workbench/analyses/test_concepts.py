"""Concept probes: prompts, mean states against single forwards, statistics against plain calls, planted geometry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
from models_for_tests import small_model
from scipy import stats
from sklearn.decomposition import PCA
from tokenizers import Tokenizer
from typer.testing import CliRunner

import probes
from reports.tables import COLUMNS, read_table
from workbench import runs
from workbench.analyses import find_analysis
from workbench.analyses.probe.concept_plane import point_rows, principal_plane
from workbench.analyses.probe.concept_tests import crystallised, isotropic_dimension, probe
from workbench.analyses.probe.states import TEMPLATES, build_prompts, concept_states, state_hooks, text_states
from workbench.cli.app import app
from workbench.data.concepts import ConceptSet, choose_sets, read_concepts
from workbench.data.corpus import EMBEDDED, TextSource
from workbench.data.text_windows import spread_windows
from workbench.data.tokenizer import load_tokenizer, train_bpe
from workbench.extend import Job, Subject
from workbench.models.checkpoint import save
from workbench.models.load import load
from workbench.models.tokenizer_files import wrap_tokenizer
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
SETS = read_concepts()
BY_NAME = {one.name: one for one in SETS}
SIZES = {
    "months": 12, "weekdays": 7, "colours": 7, "seasons": 4, "compass": 8, "digits": 10, "number_words": 20, "sizes": 8,
    "alphabet": 26, "temperature": 6, "frequency": 5, "bio_hierarchy": 8, "years_1990": 35, "years_1800": 45,
    "us_states": 50, "antonyms": 16, "subject_pronouns": 7, "object_pronouns": 7, "countries": 12, "emotions": 8,
}  # fmt: skip
FRUIT = ConceptSet(name="fruit", category="fruit", topology="ordinal", words=("apple", "pear", "plum", "fig"))


def metaspace_bpe():
    """A tokenizer of the sentencepiece kind: spaces become ▁, one is put in front, BOS is <s>."""
    tokenizer = Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    pre = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = pre.Sequence([pre.Metaspace(), pre.Punctuation()])
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    texts = [t.format(category=s.category, X=w) for s in SETS for w in s.all_words for t in TEMPLATES]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap_tokenizer(tokenizer, bos="<s>", eos="</s>").wrapped


def plain(tokenizer):
    """The tokenizer as the library gives it, without any special token."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def embedded():
    return wrap_tokenizer(load_tokenizer("embedded")).wrapped


@pytest.fixture(scope="module")
def subject(embedded):
    """A small random model with a real tokenizer."""
    model = small_model("kotodama", d_vocab=4096)
    model.tokenizer = embedded
    return model


# --- sets


def test_every_set_is_there_with_its_words():
    assert {one.name: len(one.all_words) for one in SETS} == SIZES
    assert BY_NAME["years_1990"].words == tuple(str(year) for year in range(1990, 2025))
    assert BY_NAME["years_1800"].words == tuple(str(year) for year in range(1800, 2021, 5))
    assert "".join(BY_NAME["alphabet"].words) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    topologies = {one.name: one.topology for one in SETS}
    assert [n for n, t in topologies.items() if t == "cyclic"] == [
        "months",
        "weekdays",
        "colours",
        "seasons",
        "compass",
    ]
    assert [n for n, t in topologies.items() if t in ("geographic", "paired")] == ["us_states", "antonyms"]


def test_states_lie_where_their_capitals_do():
    places = {p["state"]: (p["lat"], p["lon"]) for p in json.loads((EMBEDDED / "us_state_capitals.json").read_text())}
    states = BY_NAME["us_states"]
    found = zip(states.words, zip(states.latitudes, states.longitudes, strict=True), strict=True)
    assert dict(found) == places


GOOD = '[fruit]\ncategory = "fruit"\ntopology = "ordinal"\nwords = ["apple", "pear", "plum"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace(', "plum"', ""), r"\[fruit\] words: got 2; expected at least 3"),
        (GOOD.replace("plum", "pear"), r"\[fruit\] words: 'pear' stands twice; expected each once"),
        (GOOD.replace('"plum"', '"caf\\u00e9", "cafe\\u0301"'), "stands twice"),
        (GOOD.replace("plum", "plum "), "got 'plum '; expected words without white space around them"),
        (GOOD.replace("plum", ""), "got ''; expected words without white space"),
        (GOOD.replace("words", "wrods"), r"unknown key 'wrods'; nearest: words"),
        (GOOD.replace("ordinal", "round"), r"\[fruit\] topology: Input should be 'ordinal', 'cyclic'"),
        (GOOD.replace('category = "fruit"\n', ""), r"\[fruit\] category: Field required"),
        (GOOD + "positions = [1, 2]\n", "positions: got 2 for 3 words; expected one each"),
        (GOOD + "period = 4\n", 'period: given for topology = "ordinal"; expected "cyclic"'),
        (GOOD.replace("ordinal", "cyclic") + "positions = [1, 2, 3]\n", "period: missing beside positions"),
        (GOOD.replace("ordinal", "geographic"), "latitudes: got 0 for 3 words"),
        (
            GOOD.replace("ordinal", "geographic") + "latitudes = [0, 1, 91]\nlongitudes = [0, 1, 2]\n",
            r"latitudes: got 0 … 91; expected degrees from \(-90, 90\)",
        ),
        (GOOD.replace("ordinal", "paired"), "words: given for a paired set; expected pairs alone"),
        (
            '[p]\ncategory = "c"\ntopology = "paired"\npairs = [["a", "b"], ["c", "d"]]',
            "pairs: got 2; expected at least 3",
        ),
        (GOOD.replace('"plum"', "3"), "words.2: Input should be a valid string"),
        ("fruit = 3", r"fruit is a int; expected a table \[fruit\]"),
        ("[fruit", "is not TOML"),
        ("", "is empty; expected a table"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_concepts(file)


def test_bad_choices_are_named(tmp_path):
    with pytest.raises(ValueError, match="no file 'nowhere.toml'"):
        read_concepts("nowhere.toml")
    with pytest.raises(ValueError, match="no concept set 'month'; nearest: months"):
        choose_sets(SETS, ["month"])
    with pytest.raises(ValueError, match="months given twice; expected another name"):
        choose_sets([*SETS, BY_NAME["months"]])
    with pytest.raises(ValueError, match="got none"):
        choose_sets(SETS, [])
    with pytest.raises(ValueError, match="expected each once"):
        choose_sets(SETS, ["months", "months"])


# --- prompts


@pytest.mark.parametrize("kind", ["embedded", "gpt2", "metaspace"])
def test_spans_hold_the_word_and_nothing_else(kind, embedded):
    tokenizer = {"embedded": lambda: embedded, "metaspace": metaspace_bpe}.get(
        kind, lambda: wrap_tokenizer(load_tokenizer("gpt2")).wrapped
    )()
    prompts, used = build_prompts(tokenizer, SETS)
    assert used == TEMPLATES
    assert len(prompts) == 3 * sum(SIZES.values())
    for prompt in prompts:
        one = BY_NAME[prompt.set]
        word = one.all_words[prompt.word]
        assert prompt.tokens[0] == tokenizer.bos_token_id
        assert 1 <= prompt.start < prompt.stop <= len(prompt.tokens)
        assert tokenizer.decode(prompt.tokens[prompt.start : prompt.stop]).strip() == word
        text = prompt.template.replace("{category}", one.category).replace("{X}", word)
        assert tokenizer.decode(prompt.tokens[1:]).strip() == text
        assert list(prompt.tokens[1:]) == tokenizer.encode(text, add_special_tokens=False)
    in_a_sentence = [p for p in prompts if p.template == "In the {category} of {X},"]
    assert all(p.stop == len(p.tokens) - 1 for p in in_a_sentence)  # the comma behind the word is not read


def test_a_word_that_merges_with_its_neighbour_cannot_be_placed():
    glued = Tokenizer(tokenizers.models.BPE())  # no pre-tokenizer: merges cross spaces and commas
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>"], show_progress=False, initial_alphabet=[chr(i) for i in range(32, 127)]
    )
    glued.train_from_iterator(["In the fruit of plum, In the fruit of plum, apple pear fig"] * 50, trainer)
    with pytest.raises(ValueError, match=r"fruit: the tokenizer cannot place '\w+' in 'In the fruit of \w+,', tokens"):
        build_prompts(wrap_tokenizer(glued).wrapped, [FRUIT], ["In the {category} of {X},"])


def test_an_unknown_word_cannot_be_placed():
    words = Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<s>": 1, "The": 2, "apple": 3}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = wrap_tokenizer(words, bos="<s>").wrapped
    assert tokenizer.unk_token is None  # what the vocabulary lacks is named by the model in tokenizer.json alone
    with pytest.raises(ValueError, match="cannot place 'pear' in 'pear'"):
        build_prompts(tokenizer, [FRUIT], ["{X}"])


def test_words_that_a_tokenizer_cannot_tell_apart():
    lower = train_bpe(["may be"], 300)
    lower.normalizer = tokenizers.normalizers.Lowercase()
    names = ConceptSet(name="case", category="case", topology="free", words=("May", "may", "be"))
    with pytest.raises(ValueError, match="case: 'May' and 'may' have the same tokens; expected others"):
        build_prompts(wrap_tokenizer(lower).wrapped, [names])


def test_nothing_is_read_at_position_0_where_no_token_begins_a_text():
    bare = tokenizers.Tokenizer.from_str(
        train_bpe(["apple pear plum fig"], 300).to_str().replace("<|endoftext|>", "~~")
    )
    tokenizer = plain(bare)
    assert tokenizer.bos_token_id is tokenizer.eos_token_id is None
    with pytest.warns(probes.ProbeWarning, match=r"begins a text with no token; '\{X\}' left out"):
        prompts, used = build_prompts(tokenizer, [FRUIT])
    assert used == TEMPLATES[:2]
    assert all(p.stop - 1 > 0 for p in prompts)
    with pytest.raises(ValueError, match="none puts a token in front of the word"):
        build_prompts(tokenizer, [FRUIT], ["{X}"])
    # a chat model's EOS ends a turn, and its BOS may begin one: neither is put before a text unless the tokenizer does
    tokenizer.eos_token = tokenizer.bos_token = "~~"
    with pytest.warns(probes.ProbeWarning, match="begins a text with no token"):
        assert build_prompts(tokenizer, [FRUIT])[0] == prompts
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="~~ $A", special_tokens=[("~~", tokenizer.eos_token_id)]
    )
    assert {p.tokens[0] for p in build_prompts(tokenizer, [FRUIT])[0]} == {tokenizer.eos_token_id}


@pytest.mark.parametrize("template", ["The fruit", "{X} and {X}"])
def test_a_template_has_one_place(embedded, template):
    with pytest.raises(ValueError, match=r"expected exactly one \{X\} in each"):
        build_prompts(embedded, [FRUIT], [template])
    with pytest.raises(ValueError, match="templates: got none"):
        build_prompts(embedded, [FRUIT], [])


def test_a_category_is_no_template(embedded):
    odd = FRUIT.model_copy(update={"category": "{X}"})
    (prompt, *_), _ = build_prompts(embedded, [odd], ["The {category} is {X}"])
    assert embedded.decode(prompt.tokens[1 : prompt.start]) == "The {X} is"
    assert embedded.decode(prompt.tokens[prompt.start : prompt.stop]) == " apple"


# --- states


def naive_means(model, one, templates=TEMPLATES):
    """Mean state of every word, a forward at a time, the word found by the offsets of the tokenizer's own."""
    words = []
    for word in one.all_words:
        total = 0
        for template in templates:
            text = template.replace("{category}", one.category).replace("{X}", word)
            end = text.index(word, len(template.split("{X}")[0].replace("{category}", one.category))) + len(word)
            encoding = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            last = max(i for i, (start, stop) in enumerate(encoding["offset_mapping"]) if start < end)
            tokens = torch.tensor([[model.tokenizer.bos_token_id, *encoding["input_ids"]]])
            cache = model.run_with_cache(tokens)[1]
            total = total + torch.stack([cache[hook][0, last + 1] for hook in state_hooks(model)]).double()
        words.append(total / len(templates))
    return torch.stack(words).numpy()


@pytest.mark.parametrize("kind", ["janus-small", "janus-v3", "attn-res", "recurrent"])
def test_means_equal_single_forwards(kind, embedded):
    model = small_model(kind, d_vocab=4096)
    model.tokenizer = embedded
    sets = [BY_NAME["colours"], BY_NAME["antonyms"]]
    found = concept_states(model, sets)
    assert found.n_prompts == 3 * (7 + 16)
    for one in sets:
        assert found.means[one.name].shape == (len(one.all_words), model.cfg.n_layers + 1, 32)
        # float32 sums in batches of another shape
        np.testing.assert_allclose(found.means[one.name], naive_means(model, one), rtol=1e-4, atol=1e-5)


def test_outlying_states_are_counted(subject):
    model = small_model("janus-v3", d_vocab=4096)
    model.tokenizer = subject.tokenizer
    bare = {p.word: p.tokens[-1] for p in build_prompts(model.tokenizer, [FRUIT], ["{X}"])[0]}
    with torch.no_grad():
        model.embed.W_E[bare[1]] *= 100  # the last token of "pear" with no space before it
    found = concept_states(model, [FRUIT, BY_NAME["months"]])
    assert found.n_outlying["fruit"].tolist() == [1] * 4
    assert found.n_outlying["months"].tolist() == [0] * 4
    table = probe(model, [FRUIT], n_points=0, n_permutations=9)
    assert table.concept_mantel["n_outlying"].tolist() == [1] * 4
    assert table.concept_geometry["n_outlying"].tolist() == [1] * 4


def test_a_transformer_lens_model_is_a_subject(subject, embedded):
    subject.tokenizer = None
    theirs = to_hooked_transformer(subject)
    subject.tokenizer = theirs.tokenizer = embedded
    one = [BY_NAME["seasons"]]
    ours, other = (concept_states(model, one).means["seasons"] for model in (subject, theirs))
    np.testing.assert_allclose(ours, other, rtol=1e-3, atol=1e-4)  # two implementations in float32


def test_half_precision_is_warned_about(embedded):
    model = small_model("janus-v3", d_vocab=4096).to(torch.bfloat16)
    model.tokenizer = embedded
    with pytest.warns(probes.LowPrecisionWarning, match="computes in bfloat16; distances of near states"):
        concept_states(model, [FRUIT])


def test_text_states_are_of_every_position_but_0(subject):
    tokens = torch.randint(0, 4096, (5, 9), generator=torch.Generator().manual_seed(0))
    states = text_states(subject, tokens, 10**6, seed=0)
    cache = subject.run_with_cache(tokens)[1]
    for state, hook in zip(states, state_hooks(subject), strict=True):
        np.testing.assert_allclose(state, cache[hook][:, 1:].reshape(40, 32).numpy(), rtol=1e-4, atol=1e-5)
    few = text_states(subject, tokens, 7, seed=1)
    assert few.shape == (4, 7, 32)
    rows = [np.flatnonzero((states[3] == point).all(axis=1)) for point in few[3]]
    assert [len(r) for r in rows] == [1] * 7
    assert text_states(subject.double(), tokens, 7, seed=1).dtype == np.float64
    subject.float()


# --- statistics


@pytest.fixture(scope="module")
def found(subject):
    other = small_model("attn-res", seed=5, d_vocab=4096, n_layers=4)
    other.tokenizer = subject.tokenizer
    tokens = torch.randint(0, 4096, (6, 20), generator=torch.Generator().manual_seed(0))
    names = ["weekdays", "months", "digits", "antonyms", "emotions"]
    result = probe([subject, other], names, tokens, names=["a", "b"], seeds=[3, 4], n_permutations=499, n_points=100)
    return result, [concept_states(m, [BY_NAME[n] for n in names]).means for m in (subject, other)], (subject, tokens)


def test_tables_keep_the_contract(found):
    result = found[0]
    tables = result.tables()
    assert set(tables) == {
        "concept_mantel", "crystallisation", "concept_points", "concept_geometry", "trajectories",
        "antonym_parallelism", "intrinsic_dimension", "intrinsic_dimension_curve",
    }  # fmt: skip
    for name, table in tables.items():
        assert set(COLUMNS[name]) <= set(table.columns), name
        assert set(zip(table["model"], table["seed"], strict=True)) == {("a", 3), ("b", 4)}, name
    mantel = result.concept_mantel
    assert tuple(mantel.columns[: len(COLUMNS["concept_mantel"])]) == COLUMNS["concept_mantel"]
    assert len(mantel) == 3 * (4 + 5)  # sets with a topology, states of both models
    assert sorted(set(mantel["layer"])) == [-1, 0, 1, 2, 3]
    assert set(result.concept_geometry["set"]) == {"weekdays", "months", "digits", "antonyms", "emotions"}


def test_mantel_rows_equal_one_test_a_layer(found):
    result, (means, _), _ = found
    for name, target in (
        ("weekdays", probes.cyclic_distances(7)), ("months", probes.cyclic_distances(12)),
        ("digits", probes.ordinal_distances(10)),
    ):  # fmt: skip
        rows = result.concept_mantel.query("set == @name and model == 'a'")
        spelling = probes.levenshtein_distances(BY_NAME[name].words)
        upper = np.triu_indices(len(target), 1)
        for k, row in enumerate(rows.itertuples()):
            states = means[name][:, k]
            distances = np.linalg.norm(states[:, None] - states[None], axis=-1)
            r = stats.spearmanr(distances[upper], target[upper])[0]
            assert row.r == pytest.approx(r, abs=1e-9)
            assert (row.layer, row.n, row.is_exact) == (k - 1, len(target), name == "weekdays")
            if name == "digits":  # every digit is one letter from every other: spelling has no spread
                assert np.isnan([row.partial_r, row.r2, row.partial_p]).all()
                continue
            partial = probes.partial_mantel(probes.euclidean_distances(states), target, spelling, n_resamples=99, rng=0)
            assert row.partial_r == pytest.approx(partial.statistic, abs=1e-12)
            assert row.r2 == pytest.approx(partial.statistic**2, abs=1e-12)
            if row.is_exact:
                single = probes.mantel(probes.euclidean_distances(states), target)
                wanted = (single.pvalue, single.min_pvalue, single.n_ties, 5040)
                assert (row.p, row.min_p, row.n_ties, row.n_permutations) == wanted
                assert row.partial_p == partial.pvalue
            assert row.ci_low <= row.ci_high
            assert row.p <= row.p_westfall_young


def test_q_is_over_all_sets_layers_and_models(found):
    mantel = found[0].concept_mantel
    p = mantel["p"].to_numpy()
    order = np.argsort(p)
    q = np.minimum.accumulate((p[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    np.testing.assert_allclose(mantel["q"].to_numpy()[order], np.minimum(q, 1))


def test_crystallisation_is_read_off_the_rows(found):
    result = found[0]
    for row in result.crystallisation.itertuples():
        own = result.concept_mantel.query("set == @row.set and model == @row.model").sort_values("layer")
        r = own["r"].to_numpy()
        if r.max() <= 0:
            assert np.isnan(row.layer)
            continue
        first = next(k for k in range(len(r)) if r[k] >= 0.9 * r.max() - 1e-9)
        assert (row.layer, row.maximum, row.layer_of_maximum) == (first - 1, r.max(), r.argmax() - 1)
        assert -1 <= row.layer_low <= row.layer_high <= own["layer"].max()


def test_crystallisation_interval_counts_resamples():
    replicates = np.array([[0.1, 0.95, 1.0], [0.95, 1.0, 0.2], [0.0, 0.1, 0.5], [-1, -1, -1], [np.nan, 0.3, 0.2]])
    row = crystallised(np.array([0.2, 0.8, 1.0]), replicates)
    assert (row["layer"], row["layer_of_maximum"]) == (1, 1)
    low, high = np.quantile([0, -1, 1, 0], [0.025, 0.975])  # the resample without a correlation above 0 is left out
    assert (row["layer_low"], row["layer_high"]) == (low, high)
    for none in (np.array([-0.1, np.nan]), np.array([2e-17, -0.1])):  # ± rounding of 0
        assert all(np.isnan(v) for k, v in crystallised(none, replicates[:, :2]).items() if k != "share")


def test_points_are_those_of_a_pca_at_three_layers(found):
    result, means, _ = found
    assert set(result.concept_points["set"]) == {"weekdays", "months", "digits"}
    for (model, name), rows in result.concept_points.groupby(["model", "set"]):
        r = result.concept_mantel.query("set == @name and model == @model").sort_values("layer")["r"].to_numpy()
        assert set(rows["layer"]) == {-1, r.argmax() - 1, len(r) - 2}
        assert set(rows["layer"][rows["is_best"] == 1]) == {r.argmax() - 1}
        for layer, own in rows.groupby("layer"):
            states = means["ab".index(model)][name][:, layer + 1]
            pca = PCA(2).fit(states)
            wanted, got = pca.transform(states), own[["pc1", "pc2"]].to_numpy()
            wanted *= np.sign((wanted * got).sum(axis=0))
            np.testing.assert_allclose(got, wanted, atol=6e-4 * np.abs(wanted).max())
            np.testing.assert_allclose(
                own[["share_pc1", "share_pc2"]].iloc[0], pca.explained_variance_ratio_, atol=6e-5
            )
            assert tuple(own["item"]) == BY_NAME[name].words
            assert own["place"].tolist() == list(range(len(own)))
            assert np.corrcoef(own["place"], own["pc1"])[0, 1] >= 0
            assert own["pc2"].max() >= -own["pc2"].min()


def test_points_turn_with_the_states_and_are_undefined_without_spread():
    states = np.random.default_rng(0).normal(size=(9, 16))
    turn = stats.ortho_group.rvs(16, random_state=1)
    for there, here in zip(principal_plane(3 + states @ turn), principal_plane(states), strict=True):
        np.testing.assert_allclose(there, here, atol=2e-3)  # rounded
    for equal in (np.ones((4, 3)), np.full((7, 5), 0.1)):  # 0.1 has no exact mean
        points, shares = principal_plane(equal)
        assert (points == 0).all()
        assert np.isnan(shares).all()
    assert principal_plane(np.arange(4.0)[:, None])[1].tolist() == [1.0, 0.0]  # one dimension
    rows = point_rows({}, FRUIT, states[:4, None], [np.nan])
    assert [row["is_best"] for row in rows] == [0] * 4


def test_geometry_and_trajectories_equal_the_probes(found):
    result, means, _ = found
    for model, own in zip("ab", means, strict=True):
        geometry = result.concept_geometry[result.concept_geometry["model"] == model]
        for name, states in own.items():
            dims = geometry[geometry["set"] == name]["effective_dim"]
            wanted = [probes.participation_ratio(states[:, k]) for k in range(states.shape[1])]
            np.testing.assert_allclose(dims, wanted, rtol=1e-12)
            assert (dims <= len(states) - 1).all()
            rows = result.trajectories[result.trajectories["model"] == model].query("set == @name")
            np.testing.assert_allclose(rows["value"], probes.lag_decay(states), rtol=1e-12)
            assert rows["lag"].tolist() == list(range(1, states.shape[1] - 1))
            assert rows["measure"].iloc[0] == "trajectory_consistency"
            assert (rows["ci_low"] <= rows["value"]).all()
            assert (rows["value"] <= rows["ci_high"]).all()
        at = geometry[geometry["layer"] == 1]
        np.testing.assert_allclose(at["mean_over_sets"], at["effective_dim"].mean())
    first = result.trajectories[result.trajectories["lag"] == 1]
    np.testing.assert_allclose(first["null_independent"], -0.5, atol=0.05)
    np.testing.assert_allclose(first["null_random_walk"], 0, atol=0.05)


def test_isotropic_dimension_is_what_draws_give():
    rng = np.random.default_rng(0)
    traces = np.array([_traces(rng.normal(size=(12, 7))) for _ in range(4000)])
    assert isotropic_dimension(12, 7) == pytest.approx(np.mean(traces[:, 0] ** 2) / np.mean(traces[:, 1]), rel=0.01)


def _traces(points):
    scatter = np.cov(points.T)
    return np.trace(scatter), np.trace(scatter @ scatter)


def test_parallelism_rows_equal_the_probe(found):
    result, (means, _), _ = found
    rows = result.antonym_parallelism.query("model == 'a' and layer == 1").set_index("n_removed")
    assert (rows["excess_over_null"] == rows["parallelism"] - rows["null_mean"]).all()
    states = means["antonyms"][:, 2]
    for k in (0, 1):
        single = probes.pair_parallelism(states[:8], states[8:], n_removed_components=k)
        assert rows.loc[k, "parallelism"] == pytest.approx(single.statistic, abs=1e-12)
        assert rows.loc[k, ["p", "n", "n_permutations"]].tolist() == [single.pvalue, 8, 40320]


def test_intrinsic_dimension_is_of_the_text(found):
    result, _, (model, tokens) = found
    states = text_states(model, tokens, 100, seed=0)
    rows = result.intrinsic_dimension.query("model == 'a'")
    for layer in range(3):
        single = probes.two_nn(states[layer + 1])
        row = rows[rows["layer"] == layer].iloc[0]
        assert (row["dimension"], row["stderr"], row["n_used"], row["n"], row["n_near_duplicates"]) == (
            single.dimension, single.stderr, single.n_used, 100, 0
        )  # fmt: skip
    curve = result.intrinsic_dimension_curve.query("model == 'a' and layer == 0")
    assert curve["n_points"].tolist() == [100, 50]


def test_a_set_does_not_depend_on_its_company_nor_a_model_on_its_own(found, subject):
    alone = probe(subject, ["months"], names=["a"], seeds=[3], n_permutations=499, n_points=0)
    assert "intrinsic_dimension" not in alone.tables()
    among = found[0].concept_mantel.query("set == 'months' and model == 'a'").reset_index(drop=True)
    same = [c for c in among if c not in ("q", "p_westfall_young")]  # both are about the company
    # the bootstrap walks models together; sums of one and of two models differ in the last digit
    pd.testing.assert_frame_equal(alone.concept_mantel[same], among[same], rtol=1e-9)
    again = probe(subject, ["months"], names=["a"], seeds=[3], n_permutations=499, n_points=0)
    pd.testing.assert_frame_equal(alone.concept_mantel, again.concept_mantel)


# --- planted geometry


def planted(subject, one, points):
    """A model in which the last token of every word, with and without its space, has the embedding `points`."""
    model = small_model("janus-v3", d_vocab=4096).double()  # in float32, distances that should tie do not
    model.tokenizer = subject.tokenizer
    prompts = build_prompts(model.tokenizer, [one])[0]
    last = {p.tokens[p.stop - 1]: p.word for p in prompts}
    width = points.shape[1]
    with torch.no_grad():
        model.embed.W_E.zero_()
        for token, word in last.items():
            model.embed.W_E[token, :width] = torch.from_numpy(points[word])
    return model


def things(topology, n, **more):
    """Words that are spelt in no relation to their order."""
    words = ("house", "water", "night", "hand", "friend", "country", "river", "letter", "garden", "captain")
    return ConceptSet(name="planted", category="thing", topology=topology, words=words[:n], **more)


@pytest.mark.parametrize("topology", ["ordinal", "cyclic", "geographic"])
def test_planted_geometry_is_found_at_the_embedding(subject, topology):
    n = 9
    rng = np.random.default_rng(1)
    lat, lon = rng.uniform(-80, 80, n), rng.uniform(-180, 180, n)
    places = {"latitudes": tuple(lat), "longitudes": tuple(lon)} if topology == "geographic" else {}
    one = things(topology, n, **places)
    angle, (phi, lam) = 2 * np.pi * np.arange(n) / n, np.radians([lat, lon])
    points = {
        "ordinal": np.arange(1, n + 1)[:, None] * np.array([[1.0, -2.0, 0.5]]),
        "cyclic": np.stack([np.cos(angle), np.sin(angle)], axis=1),
        "geographic": np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=1),
    }[topology]
    result = probe(planted(subject, one, points), [one], n_points=0, n_permutations=999)
    row = result.concept_mantel.query("layer == -1").iloc[0]
    assert row["r"] == pytest.approx(1, abs=1e-9)
    assert row["p"] <= 18 / 1000  # a nine-cycle has 18 automorphisms, of which few are drawn
    assert row["partial_r"] > 0.99
    dims = result.concept_geometry.query("layer == -1")["effective_dim"].iloc[0]
    assert dims == pytest.approx({"ordinal": 1, "cyclic": 2}.get(topology, dims), abs=1e-5)


def test_planted_pairs_are_parallel(subject):
    pairs = (("house", "river"), ("water", "letter"), ("night", "garden"), ("hand", "captain"))
    one = ConceptSet(name="pairs", category="thing", topology="paired", pairs=pairs)
    firsts = np.random.default_rng(0).normal(size=(4, 8))
    model = planted(subject, one, np.concatenate([firsts, firsts + np.array([0.5, -1, 0, 0, 0, 0, 0, 2])]))
    row = probe(model, [one], n_points=0).antonym_parallelism.query("layer == -1 and n_removed == 0").iloc[0]
    assert row["parallelism"] == pytest.approx(1, abs=1e-6)
    assert row["p"] == 1 / 24


def test_cosine_distances_see_directions_only(subject):
    one = things("ordinal", 6)
    angle = np.arange(6) / 6
    lengths = np.array([1, 9, 2, 7, 3, 5.0])[:, None]
    model = planted(subject, one, lengths * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    by = {d: probe(model, [one], n_points=0, distance=d).concept_mantel.iloc[0] for d in ("cosine", "euclidean")}
    assert by["cosine"]["r"] == pytest.approx(1, abs=1e-6)
    assert by["euclidean"]["r"] < 0.5
    assert by["cosine"]["distance"] == "cosine"


# --- bad input


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concepts": ["month"]}, "no concept set 'month'; nearest: months"),
        ({"concepts": [3]}, "expected names of sets, ConceptSets, or a TOML file"),
        ({"concepts": "nowhere.toml"}, "no file 'nowhere.toml'"),
        ({"distance": "manhattan"}, "distance: Input should be 'euclidean' or 'cosine'"),
        ({"n_permutations": 0}, "n_permutations: Input should be greater than or equal to 1"),
        ({"n_points": 2}, "n_points: got 2; expected at least 3, or 0"),
        ({"names": ["a", "b"]}, "got 2 and 1 for 1 models"),
        ({"templates": ["{Y}"]}, "expected exactly one"),
    ],
)
def test_bad_settings(subject, settings, message):
    with pytest.raises(ValueError, match=message):
        probe(subject, **settings)


def test_bad_models(subject):
    with pytest.raises(ValueError, match="models: got none"):
        probe([])
    with pytest.raises(ValueError, match="expected each model another name or seed"):
        probe([subject, subject])
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        probe(small_model("janus-v3"), ["months"], n_points=0)
    with pytest.raises(ValueError, match="got 1 texts for 2 models"):
        probe([subject, subject], ["months"], [torch.zeros(4, 8, dtype=torch.long)], names=["a", "b"])
    short = small_model("janus-v3", d_vocab=4096, n_ctx=3)
    short.tokenizer = subject.tokenizer
    with pytest.raises(ValueError, match="concepts: windows of 4 tokens; expected 1 to the model's n_ctx = 3"):
        probe(short, ["months"], n_points=0)


# --- the verb


@pytest.fixture
def place(tmp_path, subject, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    Path("model").mkdir()
    save(subject, "model")
    Path("text.txt").write_text("".join(f"Line {i} tells of cat {i * i} and its river.\n" for i in range(2000)))
    Path("mine.toml").write_text(GOOD.replace("plum", 'fig", "melon'))
    return ["probe", "--ckpt", "model", "--data", "text.txt", "--n-points", 48, "--sets", "weekdays,fruit"]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_verb_writes_what_the_function_returns(place):
    settings = ["--concepts", "mine.toml", "--n-permutations", 99, "--distance", "cosine", "--seed", 2]
    result = call(*place, *settings, "--out", "p")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path.cwd() / "p")
    model = load("model")
    sets = [BY_NAME["weekdays"], *read_concepts("mine.toml")]
    tokens = spread_windows(model, "text.txt", n_tokens=96)
    assert tokens.shape == (4, 24)
    wanted = probe(model, sets, tokens, seed=2, n_permutations=99, n_points=48, distance="cosine", seeds=[2])
    for name, table in wanted.tables().items():
        pd.testing.assert_frame_equal(read_table("p", name), table, check_dtype=False, check_exact=True)
    runs.verify_manifest("p")
    assert call(*place, *settings, "--out", "p", "--resume").exit_code == 0
    again = call(*place, *settings, "--out", "p")
    assert again.exit_code == 1
    assert "already exists" in again.stderr
    assert runs.read_config("p")["settings"]["concepts"] == runs.sha256_file(Path("mine.toml"))
    Path("mine.toml").write_text(Path("mine.toml").read_text().replace("melon", "grape"))
    other = call(*place, *settings, "--out", "p", "--resume")
    assert other.exit_code == 1, "other words under the same name are another measurement"
    assert "concepts" in other.stderr


def test_a_plan_counts_the_text(place):
    for n_points, n_tokens in ((48, 4 * 24), (0, 0)):
        plan = json.loads(call(*place, "--n-points", n_points, "--json", "--dry-run", "--out", "q").stdout)
        assert (plan["n_models"], plan["n_tokens"]) == (1, n_tokens)
        assert not Path("q").exists()
        place = [word for word in place if word not in ("--data", "text.txt")]


def test_json_and_errors_of_the_verb(place):
    place = place[:-1] + ["seasons,antonyms"]
    without_text = ["probe", "--ckpt", "model", "--n-points", 0, *place[-2:]]
    answer = json.loads(call(*without_text, "--json").stdout)
    assert {row["set"] for row in answer["rows"]} == {"seasons"}
    assert {p.stem for p in Path("runs/probe").glob("*.csv")} == {
        "antonym_parallelism", "concept_geometry", "concept_mantel", "concept_points", "crystallisation",
        "trajectories",
    }  # fmt: skip
    two = ["--template", "The {X}", "--template", "One {category} is {X}"]
    assert call(*without_text, *two, "--out", "two").exit_code == 0
    assert set(read_table("two", "concept_mantel")["n_templates"]) == {2}
    assert runs.read_config("two")["settings"]["template"] == ["The {X}", "One {category} is {X}"]
    for arguments, code, message in (
        ([*place[:-1], "season"], 1, "no concept set 'season'; nearest: seasons"),
        ([*place, "--concepts", "nowhere.toml"], 1, "no file 'nowhere.toml'"),
        ([*place, "--template", "The fruit"], 1, "expected exactly one {X} in each"),
        ([*place, "--distance", "far"], 2, "--distance: got 'far'; expected 'euclidean' or 'cosine'"),
        ([*place, "--set", "n_permutation=9"], 2, "unknown key 'n_permutation'"),
        ([*without_text, "--data", "text.txt"], 2, "data: got n_points = 0, with which no text is read"),
        ([*without_text, "--n-ctx", 8], 2, "--n-ctx: got n_points = 0"),
    ):
        result = call(*arguments, "--out", "x")
        assert result.exit_code == code, result.output
        assert message in result.stderr
        assert not list(Path().glob("x*"))


def test_windows_are_of_128_tokens_where_the_model_reads_more(embedded, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    own = find_analysis("probe").settings
    for n_ctx, settings, shape in ((200, {}, (2, 128)), (24, {}, (10, 24)), (200, {"n_ctx": 150}, (1, 150))):
        model = small_model("janus-v3", d_vocab=4096, n_ctx=n_ctx)
        model.tokenizer = embedded
        job = Job((Subject(model, "m", 0),), own(n_points=128, **settings), tmp_path)
        assert tuple(job.tokens.shape) == shape


def test_no_text_is_read_where_no_dimension_is_taken(embedded, tmp_path):
    model = small_model("janus-v3", d_vocab=4096)
    model.tokenizer = embedded
    model.trained_on = TextSource("nowhere.txt")
    own = find_analysis("probe").settings
    assert len(Job((Subject(model, "m", 0),), own(n_points=0), tmp_path).tokens) == 0
    with pytest.raises(ValueError, match=r"nowhere\.txt"):
        _ = Job((Subject(model, "m", 0),), own(n_points=8), tmp_path).tokens
