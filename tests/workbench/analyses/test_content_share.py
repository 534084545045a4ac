"""Content share: hand-made SAEs with known shares, a naive loop, the null's false alarms, words of several tokens."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model, worded_model
from saes_for_tests import stack_for

from reports.tables import COLUMNS, read_table
from workbench.analyses import find_analysis
from workbench.analyses.content_share import share as module
from workbench.analyses.content_share import words
from workbench.analyses.content_share.figures import draw_content_share
from workbench.analyses.content_share.peaks import Peaks
from workbench.analyses.content_share.permutations import LabelledTokens, permute_labels
from workbench.analyses.content_share.share import ContentShareWarning, FeatureContexts, content_share, feature_shares
from workbench.analyses.content_share.words import IS_NEITHER, WordedDocument, cut_windows, word_documents
from workbench.analyses.text_quality.tagging import PlacedWord, TaggerMissing
from workbench.data.blocks import block_numbers
from workbench.models.activations import Positions, Slot, choose_slots, collect, special_ids
from workbench.study import measuring

NOUNS = ("cat", "window", "river", "stone", "house", "antidisestablishment")
POS = dict.fromkeys(NOUNS, "NOUN") | {"the": "DET", "a": "DET", "on": "ADP", "ran": "VERB", "12": "NUM", ",": "PUNCT"}
LAST: dict[str, Any] = {"n_bootstrap": 100, "n_permutations": 99}


def tagged(text: str) -> tuple[PlacedWord, ...]:
    """Words and signs of a text, tagged by a list."""
    found = re.finditer(r"\w+|[^\w\s]", text)
    return tuple(PlacedWord(match[0], match.start(), POS.get(match[0].lower(), "X")) for match in found)


def documents_of(n: int, n_words: int = 60, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice([*POS, *["the", "a", "on"] * 4], n_words)) for _ in range(n)]


def only(found: dict[str, pd.DataFrame]) -> Any:
    """The one row of content_share."""
    (row,) = found["content_share"].itertuples()
    return row


@pytest.fixture(autouse=True)
def by_list(monkeypatch) -> None:
    """No spaCy: a list says what words are."""
    monkeypatch.setattr(words, "tagged_words", lambda texts, tagger: ("list", tuple(map(tagged, texts))))


@pytest.fixture(scope="module")
def model():
    return worded_model("kotodama").double()


# --- words


def test_every_token_has_the_word_of_its_first_character(model) -> None:
    text = "The  antidisestablishment ran,on a river"
    (own,) = word_documents(model, [text], [tagged(text)])
    pieces = [model.tokenizer.decode([i]) for i in own.ids]
    n_lead = len(own.ids) - len(model.tokenizer.encode(text, add_special_tokens=False))
    assert own.word[:n_lead].tolist() == [-1] * n_lead
    at, expected = 0, []
    for piece in pieces[n_lead:]:  # the embedded tokenizer decodes a text piece by piece
        inside = at + len(piece) - len(piece.lstrip())
        held = [i for i, word in enumerate(tagged(text)) if word.start <= inside < word.start + len(word.text)]
        expected.append(held[0] if piece.strip() else -1)
        at += len(piece)
    assert at == len(text)
    assert own.word[n_lead:].tolist() == expected
    spread = own.word[n_lead:].tolist().count(1)
    assert spread > 2, "a word of several tokens"
    assert own.words[1] == "antidisestablishment"
    assert own.label[own.word == 1].tolist() == [1] * spread
    assert {own.words[i]: int(own.label[own.word == i][0]) for i in (0, 2, 3, 4)} == {
        "The": 0,
        "ran": 1,
        ",": -1,
        "on": 0,
    }


def test_a_token_over_two_words_is_of_the_first(model) -> None:
    """The tagger parts "cannot" where the tokenizer may not; white space and unknown characters are of no word."""
    text = "cannot é 日本 🎉 cat"
    parts = (PlacedWord("can", 0, "AUX"), PlacedWord("not", 3, "PART"), PlacedWord("cat", text.index("cat"), "NOUN"))
    (own,) = word_documents(model, [text], [parts])
    offsets = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for word, (first, stop) in zip(own.word[-len(offsets) :], offsets, strict=True):
        first += len(text[first:stop]) - len(text[first:stop].lstrip())
        assert word == (0 if first < 3 else 1 if first < 6 else 2 if first >= text.index("cat") else -1)


def test_documents_are_cut_each_by_itself(model) -> None:
    texts = [*documents_of(2, 30), "", "cat"]
    own = word_documents(model, texts, [tagged(text) for text in texts])
    assert len(own) == 3, "an empty one has no token"
    windows = cut_windows(own, 16)
    for number, document in enumerate(own):
        rows = [i for i, d in enumerate(windows.document) if d == number]
        joined = torch.cat([windows.tokens[i][windows.is_token[i]] for i in rows])
        assert joined.tolist() == document.ids.tolist()
        assert [windows.start[i] for i in rows] == list(range(0, len(document.ids), 16))


# --- known shares


def spelling_sae(model, groups: Sequence[Sequence[str]], ends_only: bool = False) -> Any:
    """An SAE of the first layer's input, the embedding, whose feature i fires on the tokens of the words of group i;
    or, of words of several tokens, on their last token alone."""
    with torch.no_grad():
        model.W_E.normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
        for i, group in enumerate(groups):
            for word in group:
                ids = model.tokenizer.encode(f" {word}", add_special_tokens=False)
                for rank, token in enumerate(ids[-1:] if ends_only else ids):
                    model.W_E[token, i] = 2 + 0.1 * rank
        sae = stack_for(model, [Slot("blocks.0.hook_resid_pre", 0)], d_sae=len(groups) + 1)
        for tensor in sae.tensors.values():
            tensor.zero_()
        sae.b_enc.fill_(-1)
        for i in range(len(groups)):
            sae.W_enc[0, i, i] = 1
            sae.W_dec[0, i, i] = 1
    return sae


@pytest.mark.parametrize("ends_only", [False, True])
def test_features_of_nouns_and_of_determiners(ends_only) -> None:
    model = worded_model("kotodama").double()
    texts = documents_of(25)
    sae = spelling_sae(model, [NOUNS, ["the", "a"]], ends_only)
    of: Any = lambda sae: content_share(model, sae, texts, n_permutations=999, n_bootstrap=100)  # noqa: E731
    both = of(sae)
    features: Any = both["content_share_features"]
    assert features["feature"].tolist() == [0, 1], "the third fires nowhere"
    assert features["share"].tolist() == [1.0, 0.0]
    assert features["n_contexts"].tolist() == [20, 20]
    assert (features["n_content"] + features["n_function"]).tolist() == [20, 20]
    head = only(both)
    assert (head.layer, head.head, head.n_features, head.n_contexts) == (0, -1, 2, 40)
    assert head.share == pytest.approx(0.5)
    for group, share in ((NOUNS, 1.0), (("the", "a"), 0.0)):
        row = only(of(spelling_sae(model, [group], ends_only)))
        assert row.share == pytest.approx(share)
        assert np.isnan(row.ci_low), "one feature has no interval"
        assert row.p == row.q == 0.001, "no permutation is as far"
        assert row.excess == pytest.approx(row.share - row.text_rate)
        assert 0.3 < row.text_rate < 0.7
    assert list(both["content_share"].columns[: len(COLUMNS["content_share"])]) == list(COLUMNS["content_share"])
    assert list(features.columns) == list(COLUMNS["content_share_features"])


def test_features_of_words_that_are_neither_have_no_share() -> None:
    model = worded_model("kotodama").double()
    found = content_share(model, spelling_sae(model, [["12"], NOUNS]), documents_of(25), **LAST)
    features, head = found["content_share_features"], only(found)
    assert np.isnan(features["share"][0])
    assert features["n_contexts"][0] == 20
    assert (head.share, head.n_features, head.n_contexts) == (pytest.approx(1.0), 1, 20)


def test_features_that_fire_too_seldom_do_not_count() -> None:
    model = worded_model("kotodama").double()
    texts = [*documents_of(25), *["xyzzy"] * 30]
    sae = spelling_sae(model, [NOUNS])
    assert len(content_share(model, sae, texts, min_activations=10**6, **LAST)["content_share_features"]) == 0
    none = only(content_share(model, sae, texts, min_documents=26, **LAST))
    assert np.isnan([none.share, none.null_mean, none.p, none.q, none.excess, none.ci_low]).all()
    assert (none.n_features, none.n_contexts) == (0, 0)
    some = only(content_share(model, sae, texts, min_documents=25, **LAST))
    assert some.n_features == 1


# --- against a naive loop


@pytest.mark.parametrize("kind", ["kotodama", "attn-res", "recurrent"])
def test_a_naive_loop_finds_the_same_contexts(kind, monkeypatch) -> None:
    """Document by document and window by window; one window or several in a forward, documents of several windows."""
    model = worded_model(kind).double()
    texts = documents_of(9, 40)
    slots = choose_slots(model.cfg)
    sae = stack_for(model, slots, d_sae=6)
    with torch.no_grad():
        sae.b_enc.fill_(-0.05)
    documents = word_documents(model, texts, list(map(tagged, texts)))
    n_ctx, positions = model.cfg.n_ctx, Positions(special_ids(model), False)
    peaks: dict[tuple[int, int], list[tuple[float, int, int]]] = {}
    n_active = np.zeros((len(slots), 6))
    for number, document in enumerate(documents):
        found: dict[tuple[int, int], tuple[float, int, int]] = {}
        for start in range(0, len(document.ids), n_ctx):
            ids = torch.from_numpy(document.ids[None, start : start + n_ctx])
            acts = sae.encode(collect(model, ids, slots)).float().numpy()
            for t, k, j in itertools.product(range(ids.shape[1]), range(len(slots)), range(6)):
                if acts[k, t, j] > 0 and bool(positions.of(ids)[0, t]):
                    n_active[k, j] += 1
                    if acts[k, t, j] > found.get((k, j), (0.0,))[0]:
                        found[k, j] = (acts[k, t, j], number, start + t)
        for key, peak in found.items():
            peaks.setdefault(key, []).append(peak)
    expected = {}
    for (k, j), own in peaks.items():
        strongest = sorted(own, key=lambda peak: -peak[0])[:4]
        labels = [int(documents[d].label[t]) for _, d, t in strongest]
        n_labelled = sum(label >= 0 for label in labels)
        if n_active[k, j] >= 5 and len(own) >= 3:
            expected[slots[k].layer, slots[k].column, j] = labels.count(1) / n_labelled if n_labelled else np.nan
    assert len(expected) > 5
    counts: dict[str, Any] = {"n_contexts": 4, "min_activations": 5, "min_documents": 3, **LAST}
    for held in (1, 1 << 24):
        monkeypatch.setattr("workbench.analyses.content_share.peaks.ACTS_HELD", held)
        found_rows = content_share(model, sae, texts, **counts)
        rows = found_rows["content_share_features"].set_index(["layer", "head", "feature"])["share"].to_dict()
        assert rows == pytest.approx(expected, nan_ok=True)
        for head in found_rows["content_share"].itertuples():
            own = [v for (layer, at, _), v in expected.items() if (layer, at) == (head.layer, head.head) and v == v]
            assert head.n_features == len(own)
            assert head.share == pytest.approx(np.mean(own) if own else np.nan, nan_ok=True)


# --- without each block of documents


@pytest.mark.parametrize(
    ("n", "n_contexts", "min_activations", "min_documents"),
    [(8, 20, 5, 3), (19, 4, 40, 3), (37, 30, 5, 30), (37, 6, 90, 3), (8, 1, 5, 4)],
)
def test_values_by_block_are_those_of_the_documents_that_are_left(
    model, n, n_contexts, min_activations, min_documents
) -> None:
    """More contexts than documents and fewer; features that count in the text and not without some of its blocks;
    documents without a token, and equal ones."""
    texts = [*documents_of(n - 3, 40), "", "the cat", "the cat"]
    slots = choose_slots(model.cfg)
    sae = stack_for(model, slots, d_sae=6)
    with torch.no_grad():
        sae.b_enc.fill_(-0.1)
    counts: dict[str, Any] = {"min_activations": min_activations, "min_documents": min_documents}
    counts |= {"n_contexts": n_contexts, **LAST}
    found = content_share(model, sae, texts, **counts)
    twin, n_features = found["content_share_blocks"], []
    numbers = np.array(block_numbers(n))
    assert sorted(set(twin["block"])) == list(range(min(16, n)))
    for block, own in twin.groupby("block"):
        left = [text for text, number in zip(texts, numbers, strict=True) if number != block]
        wanted = content_share(model, sae, left, **counts)["content_share"]
        columns = ["layer", "head", "share", "text_rate", "excess", "n_features"]
        np.testing.assert_allclose(own[columns], wanted[columns], rtol=0, atol=1e-10)
        n_features.append(wanted["n_features"].sum())
    assert twin["share"].notna().any()
    assert len(set(n_features)) > 1, "in some blocks a feature counts that does not in others"


def test_fewer_than_eight_documents_have_no_values_by_block(model) -> None:
    sae = stack_for(model, choose_slots(model.cfg), d_sae=6)
    tables = lambda texts: sorted(content_share(model, sae, texts, **LAST))  # noqa: E731
    assert tables(documents_of(7)) == ["content_share", "content_share_features"]
    assert "content_share_blocks" in tables([*documents_of(7), ""])


def test_blocks_are_of_the_documents_given(model, monkeypatch) -> None:
    """A model without a token for some documents has the blocks of one that reads them all."""
    sae, texts = stack_for(model, choose_slots(model.cfg), d_sae=6), documents_of(20)
    counts: dict[str, Any] = {"min_activations": 5, "min_documents": 2, **LAST}
    twin = content_share(model, sae, [*texts[:5], "", *texts[6:-1], ""], **counts)["content_share_blocks"]
    numbers = np.array(block_numbers(20))
    for block in (numbers[5], numbers[-1], 7):
        left = [text for i, text in enumerate(texts) if i not in (5, 19) and numbers[i] != block]
        wanted = content_share(model, sae, left, **counts)["content_share"]
        np.testing.assert_allclose(twin[twin["block"] == block]["share"], wanted["share"], rtol=0, atol=1e-10)


# --- the null


def test_the_null_is_that_of_all_permutations() -> None:
    """Two documents of four tokens: every permutation by hand."""
    labels = [np.array([1, 0, 0, 1]), np.array([1, 1, 1, 0])]
    used, weights = [np.array([1, 3]), np.array([3])], [np.array([[0.25, 0.25]]), np.array([[0.5]])]
    own = [LabelledTokens(*parts) for parts in zip(labels, weights, used, strict=True)]
    observed, null = permute_labels(own, 20_000, np.random.default_rng(0))
    shares = [
        0.25 * (a[1] + a[3]) + 0.5 * b[3]
        for a, b in itertools.product(itertools.permutations(labels[0]), itertools.permutations(labels[1]))
    ]
    assert observed.tolist() == [0.25]
    assert null.mean[0] == pytest.approx(np.mean(shares), abs=1e-12)
    assert null.std[0] == pytest.approx(np.std(shares), rel=0.02)
    far = np.mean(np.abs(np.array(shares) - np.mean(shares)) >= abs(0.25 - np.mean(shares)) - 1e-9)
    assert null.pvalue[0] == pytest.approx(far, abs=4 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("n_features", [1, 12])
def test_random_firing_gives_false_alarms_at_the_stated_rate(n_features) -> None:
    """600 heads whose features fire at random tokens, documents of unequal rates, words of one to four tokens, some of
    a head's features copies of others: p ≤ .05 in at most .05 and 3.5 standard errors (.031), p ≤ .5 in about half."""
    rng, n_heads = np.random.default_rng(n_features), 600
    documents = []
    for rate in rng.uniform(0.3, 0.8, 12):
        label = np.where(rng.random(80) < 0.2, IS_NEITHER, rng.random(80) < rate).astype(int)
        word = np.repeat(np.arange(80), np.where(label == 1, rng.integers(1, 5, 80), 1))
        documents.append(WordedDocument(word.copy(), word, label[word], ("w",) * 80, len(documents)))
    chosen = np.array(list(itertools.product(range(n_heads), range(n_features))))
    feature, document = (own.flatten() for own in np.meshgrid(range(len(chosen)), range(12), indexing="ij"))
    sizes = np.array([len(own.ids) for own in documents])
    place = (rng.random(len(feature)) * sizes[document]).astype(int)
    place = place.reshape(n_heads, n_features, 12)
    place[:, n_features // 2 + 1 :] = place[:, : n_features - n_features // 2 - 1]
    place = place.flatten()
    label = np.array([documents[d].label[t] for d, t in zip(document, place, strict=True)])
    contexts = FeatureContexts(chosen, feature, document, place, label)
    windows = cut_windows(documents, 16)
    no, none = torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.float64)
    peaks = Peaks((0,) * 12, no, no.long(), no.long(), none[None], none[None], windows.is_token)
    shares = feature_shares(contexts)
    tokens = module.labelled_tokens(contexts, shares, documents, windows, peaks, n_heads)
    observed, null = permute_labels(tokens, 399, rng)
    by_head = shares.reshape(n_heads, n_features)
    assert observed == pytest.approx(np.nanmean(by_head, axis=1), abs=1e-12)
    assert (null.pvalue <= 0.05).mean() <= 0.05 + 0.031
    assert (null.pvalue <= 0.5).mean() == pytest.approx(0.5, abs=0.1)  # steps of p are coarse for one feature
    assert (observed - null.mean).mean() == pytest.approx(0, abs=4 * (observed - null.mean).std() / n_heads**0.5)


# --- the job


def request_for(model, saes, **settings) -> measuring.Request:
    analysis = find_analysis("content-share")
    own = analysis.settings.model_validate({**LAST, "n_bytes": 60_000, "min_documents": 2} | settings)
    return measuring.Request(analysis, own, sources=(model,), needs={"sae-train": (saes,)}, device="cpu")


def test_the_job_writes_what_the_function_gives(model, tmp_path) -> None:
    from workbench.data.text_windows import spread_documents, text_of

    saes = stack_for(model, choose_slots(model.cfg), d_sae=6).save(tmp_path / "saes")
    out = measuring.measure(request_for(model, saes, layers=[1]), tmp_path / "out")
    table = read_table(out, "content_share")
    texts = spread_documents(text_of(model, None), model.own_tokenizer, n_bytes=60_000)
    sae = stack_for(model, choose_slots(model.cfg), d_sae=6)
    given = {"min_documents": 2, "name": str(table["model"][0]), **LAST}
    found = content_share(model, sae, texts, [1], **given)["content_share"]
    assert table["share"].tolist() == pytest.approx(found["share"].tolist())
    assert table["p"].tolist() == found["p"].tolist()
    assert set(table["layer"]) == {1}
    assert len(read_table(out, "content_share_features")) > 0
    twin = read_table(out, "content_share_blocks")
    assert len(twin) == len(set(twin["block"])) * len(table)
    said: Any = find_analysis("content-share").facts
    assert 0 < said(out)["text_rate"] < 1
    traces: Any = draw_content_share(table).data
    assert len(traces) == 2
    assert sum(len(trace.x) for trace in traces) == table["share"].notna().sum()


def test_without_a_tagger_nothing_is_said(model, tmp_path, monkeypatch) -> None:
    def missing(texts, tagger):
        raise TaggerMissing("tagger: no module 'spacy'")

    monkeypatch.setattr(words, "tagged_words", missing)
    sae = stack_for(model, choose_slots(model.cfg), d_sae=6)
    with pytest.warns(ContentShareWarning, match="not measured: tagger: no module"):
        out = measuring.measure(request_for(model, sae.save(tmp_path / "saes")), tmp_path / "out")
    assert len(read_table(out, "content_share")) == 0
    assert find_analysis("content-share").facts(out) == {}  # pyright: ignore[reportOptionalCall]
    traces: Any = draw_content_share(read_table(out, "content_share")).data
    assert len(traces) == 0
    with pytest.raises(TaggerMissing):
        content_share(model, sae, ["cat"], tagger="mine")


def test_what_cannot_be_measured_is_refused(model, tmp_path) -> None:
    sae, texts = stack_for(model, choose_slots(model.cfg), d_sae=6), documents_of(3)
    share: Any = content_share  # wrongly called on purpose
    of = lambda *given, **more: lambda: share(*(given or (model, sae, texts)), **more)  # noqa: E731
    for call, said in (
        (of(n_contexts=0), "n_contexts: got 0; expected at least 1"),
        (of(min_documents=True), "min_documents: got True; expected at least 1"),
        (of(n_permutations=-1), "n_permutations: got -1"),
        (of(n_bootstrap=5), "n_bootstrap: got 5; expected at least 100"),
        (of(layers=[9]), "layers: got 9; expected some that the SAEs read"),
        (of(model, sae, []), "texts: got none; expected a list of documents"),
        (of(model, sae, "a cat"), "texts: got one text; expected a list of documents"),
        (of(model, sae, ["a", 3]), "texts: got 2 documents, not all text"),
        (of(model, sae, ["", ""]), "texts: got documents without a token"),
        (of(model, sae, ["12 12, 12"]), "texts: got documents without a content or function word; expected English"),
        (of(worded_model("kotodama"), sae, texts), "sha256"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            call()
    bare = small_model("kotodama")
    with pytest.raises(ValueError, match=r"content-share: .*tokenizer"):
        content_share(bare, stack_for(bare, choose_slots(bare.cfg)), texts)
    saes = sae.save(tmp_path / "saes")
    for settings, said in (
        ({"layers": [9]}, "layers: got 9"),
        ({"tagger": "no_such_pipeline"}, "tagger: spaCy has no"),
    ):
        pytest.importorskip("spacy")
        with pytest.raises(ValueError, match=said):
            measuring.measure(request_for(model, saes, **settings), tmp_path / "bad")
        assert not (tmp_path / "bad").exists()


def test_the_tagger_tells_auxiliaries_and_particles_from_verbs(monkeypatch) -> None:
    pytest.importorskip("spacy")
    monkeypatch.undo()
    title, ((*found,),) = words.tagged_words(("The old cats were not sleeping on her mat, were they?\n",), None)
    assert title.startswith("en_core_web_sm")
    labels = {word.text: words.label_of(word.pos) for word in found}
    content, function = {"old", "cats", "sleeping", "mat"}, {"The", "were", "not", "on", "her", "they"}
    assert labels == dict.fromkeys(content, 1) | dict.fromkeys(function, 0) | dict.fromkeys(",?", IS_NEITHER)
