"""Content share: of the words at which a head's features fire most strongly, how many are content words, beside what
the text's own words and labels permuted within documents give."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from probes.bootstrap import ratio_limits
from probes.multiplicity import benjamini_hochberg
from sae.stack import StackedSAE
from workbench.analyses.ablate.impacts import check_bootstrap
from workbench.analyses.content_share import words
from workbench.analyses.content_share.peaks import Peaks, find_peaks
from workbench.analyses.content_share.permutations import LabelledTokens, LabelNull, permute_labels
from workbench.analyses.content_share.words import IS_CONTENT, IS_NEITHER, DocumentWindows, WordedDocument
from workbench.analyses.feature_effects.effects import chosen_saes
from workbench.analyses.text_quality.tagging import TaggerMissing
from workbench.data.blocks import block_numbers
from workbench.data.text_windows import window_length
from workbench.models.activations import Positions, special_ids
from workbench.models.sae_places import saes_by_hook, stack_slots

N_WORDS = 10  # of a feature's contexts, those whose word its row names


class ContentShareWarning(UserWarning):
    """Nothing was measured."""


@dataclass(frozen=True)
class FeatureContexts:
    """The contexts of the features that fire often enough; of each, its feature, document and labelled token."""

    chosen: np.ndarray
    """[feature 2]: (SAE, feature)"""
    feature: np.ndarray
    """[context] row of `chosen`"""
    document: np.ndarray
    place: np.ndarray
    label: np.ndarray


def content_share(
    model: Any,
    sae: StackedSAE,
    texts: Sequence[str],
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    *,
    n_contexts: int = 20,
    min_activations: int = 20,
    min_documents: int = 5,
    n_permutations: int = 999,
    n_bootstrap: int = 2000,
    tagger: str | None = None,
    seed: int = 0,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables content_share, a row per head (−1: the whole hook), content_share_features, and of 8 documents or more
    content_share_blocks.

    A feature counts that fires on min_activations tokens and in min_documents documents. Its contexts are its strongest
    token in each of the n_contexts documents in which it is strongest. share of a feature: content / (content +
    function) over the words of its contexts; nan for a feature with neither. share of a head: mean over its features,
    with the 95 % bootstrap interval over them (nan for one). text_rate: content / (content + function) over all tokens
    of the text; excess: share − text_rate. null_mean, excess_over_null, null_std, p: labels of the content and function
    words' tokens permuted within each document, features and contexts as they are; two-sided. q: Benjamini–Hochberg
    over the rows. content_share_blocks: share, text_rate and excess without each block of the texts, as if its
    documents were not read.
    All is of the positions that the SAEs are meant for. Content is a class of words and not meaning.

    Args:
        model: a model with its tokenizer.
        sae: one SAE for each hook and head, of this model.
        texts: documents; none is read together with another.
        layers, heads: which SAEs of the stack; all by default.
        tagger: a spaCy pipeline or its folder; None: the small English one; if it is missing, the tables are empty,
            with a warning.
        seed, name: fill the columns seed and model; the seed is also that of permutations and bootstrap.

    Raises:
        ValueError: no document, or none with a token; a model without tokenizer; SAEs that do not fit the model, or
            none of these layers and heads; counts out of range.
        TaggerMissing: a tagger was named and is not there.
    """
    counts = {"n_contexts": n_contexts, "min_activations": min_activations, "min_documents": min_documents}
    check_counts(**counts, n_permutations=n_permutations, n_bootstrap=n_bootstrap)
    own = chosen_saes(sae, layers, heads)
    saes_by_hook(model, own)
    texts = checked_texts(texts)
    try:
        title, tagged = words.tagged_words(texts, tagger)
    except TaggerMissing as error:
        if tagger is not None:
            raise
        warnings.warn(f"content-share: not measured: {error}", ContentShareWarning, stacklevel=2)
        return {table: pd.DataFrame() for table in ("content_share", "content_share_features")}
    documents = words.word_documents(model, texts, tagged)
    if not documents:
        raise ValueError("texts: got documents without a token; expected text")
    tell = on_progress or (lambda share: None)
    windows, numbers = words.cut_windows(documents, window_length(model, None)), block_numbers(len(texts))
    positions = Positions(special_ids(model), bool(sae.info.include_special))
    slots = stack_slots(own)
    blocks = [numbers[document.number] for document in documents]
    peaks = find_peaks(model, own, slots, windows, n_contexts, blocks, positions, lambda done: tell(0.7 * done))
    contexts = choose_contexts(peaks, documents, **counts)
    shares = feature_shares(contexts)
    tokens = labelled_tokens(contexts, shares, documents, windows, peaks, len(slots))
    null = permute_labels(tokens, n_permutations, np.random.default_rng([seed, 0]), lambda done: tell(0.7 + 0.3 * done))
    about = {"model": name or model.cfg.model_name, "seed": seed}
    heads_found = head_table(
        own, contexts, shares, null, text_rate(tokens), n_bootstrap, np.random.default_rng([seed, 1])
    )
    heads_found = heads_found.assign(
        n_documents=len(documents), n_tokens=int(peaks.is_counted.sum()), tagger=title, **_sources(own)
    )
    features = feature_table(own, contexts, shares, peaks, documents)
    found = {"content_share": heads_found, "content_share_features": features}
    if (n_blocks := max(numbers) + 1) > 1:
        found["content_share_blocks"] = block_table(own, peaks, documents, windows, n_blocks, counts)
    return {table: rows.assign(**about)[[*about, *rows.columns]] for table, rows in found.items()}


def check_counts(
    *, n_contexts: int, min_activations: int, min_documents: int, n_permutations: int, n_bootstrap: int
) -> None:
    """Raise ValueError for a count out of range."""
    for what, given in (
        ("n_contexts", n_contexts), ("min_activations", min_activations), ("min_documents", min_documents),
        ("n_permutations", n_permutations),
    ):  # fmt: skip
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise ValueError(f"{what}: got {given!r}; expected at least 1")
    check_bootstrap(n_bootstrap)


def checked_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """The documents. Raises ValueError for what is no list of texts, or an empty one."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts) or not len(texts):
        got = "one text" if isinstance(texts, str) else f"{len(texts)} documents, not all text" if texts else "none"
        raise ValueError(f"texts: got {got}; expected a list of documents")
    return tuple(texts)


def choose_contexts(
    peaks: Peaks,
    documents: Sequence[WordedDocument],
    *,
    n_contexts: int,
    min_activations: int,
    min_documents: int,
    without: int | None = None,
) -> FeatureContexts:
    """The n_contexts strongest contexts of the features that fire on min_activations tokens and in min_documents
    documents, those of the block `without` left out."""
    kept = [block for block in range(len(peaks.n_active)) if block != without]
    is_often = peaks.n_active[kept].sum(0) >= min_activations
    is_chosen = is_often & (peaks.n_documents[kept].sum(0) >= min_documents)
    document = peaks.documents[is_chosen].numpy()
    is_context = (document >= 0) & np.array([block != without for block in peaks.blocks])[document]
    feature, rank = np.nonzero(is_context & (is_context.cumsum(axis=1) <= n_contexts))
    document, place = document[feature, rank], peaks.places[is_chosen].numpy()[feature, rank]
    start = np.cumsum([0, *(len(own.label) for own in documents)])
    label = np.concatenate([own.label for own in documents])[start[document] + place]
    return FeatureContexts(is_chosen.nonzero().numpy(), feature, document, place, label)


def feature_shares(contexts: FeatureContexts) -> Float64[np.ndarray, " feature"]:
    """content / (content + function) over each feature's contexts; nan where there is neither."""
    return _ratio(*_counts(contexts))


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """part / whole, nan where that is of nothing."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole > 0))


def _counts(contexts: FeatureContexts) -> tuple[np.ndarray, np.ndarray]:
    """[feature] contexts at content words, and at content or function words."""
    n = len(contexts.chosen)
    is_labelled = contexts.label != IS_NEITHER
    n_content = np.bincount(contexts.feature[contexts.label == IS_CONTENT], minlength=n)
    return n_content, np.bincount(contexts.feature[is_labelled], minlength=n)


def labelled_tokens(
    contexts: FeatureContexts,
    shares: Float64[np.ndarray, " feature"],
    documents: Sequence[WordedDocument],
    windows: DocumentWindows,
    peaks: Peaks,
    n_saes: int,
) -> list[LabelledTokens]:
    """Of each document the tokens of content and function words at which SAEs are measured, and what each adds to each
    head's share: 1 / (labelled contexts of the feature · features of the head), for every context there."""
    sae = contexts.chosen[:, 0]
    n_features = np.bincount(sae[~np.isnan(shares)], minlength=n_saes)
    _, n_labelled = _counts(contexts)
    is_labelled = contexts.label != IS_NEITHER
    found = []
    for number, (own, is_counted) in enumerate(zip(documents, _counted(windows, peaks, documents), strict=True)):
        at = np.flatnonzero(is_counted & (own.label != IS_NEITHER))
        if not len(at):
            continue
        here = np.flatnonzero((contexts.document == number) & is_labelled)
        used, column = np.unique(contexts.place[here], return_inverse=True)
        feature = contexts.feature[here]
        weights = np.zeros((n_saes, len(used)))
        np.add.at(weights, (sae[feature], column), 1 / (n_labelled[feature] * n_features[sae[feature]]))
        found.append(LabelledTokens(own.label[at], weights, np.searchsorted(at, used)))
    if not found:
        raise ValueError("texts: got documents without a content or function word; expected English text")
    return found


def _counted(windows: DocumentWindows, peaks: Peaks, documents: Sequence[WordedDocument]) -> list[np.ndarray]:
    """Of each document, at which of its tokens SAEs are measured."""
    found = [np.zeros(len(own.ids), dtype=bool) for own in documents]
    for row, (number, start) in enumerate(zip(windows.document, windows.start, strict=True)):
        part = found[number][start : start + windows.tokens.shape[1]]
        part[:] = peaks.is_counted[row, : len(part)].numpy()
    return found


def text_rate(tokens: Sequence[LabelledTokens]) -> float:
    """content / (content + function) over all tokens of the text."""
    return float(np.concatenate([own.labels for own in tokens]).mean())


def head_table(
    sae: StackedSAE,
    contexts: FeatureContexts,
    shares: Float64[np.ndarray, " feature"],
    null: tuple[Float64[np.ndarray, " head"], LabelNull],
    rate: float,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """A row per head: its share beside the text's and the null's; nan for a head without a feature that counts."""
    observed, permuted = null
    rows = []
    for k, slot in enumerate(stack_slots(sae)):
        own = shares[(contexts.chosen[:, 0] == k) & ~np.isnan(shares)]
        n_contexts = int((contexts.label[contexts.chosen[contexts.feature, 0] == k] != IS_NEITHER).sum())
        row: dict[str, Any] = {"layer": slot.layer, "head": slot.column}
        share, low, high, mean, std, p = (np.nan,) * 6
        if len(own):
            share, mean, std, p = observed[k], permuted.mean[k], permuted.std[k], permuted.pvalue[k]
            (low,), (high,) = ratio_limits(own[None], np.ones(len(own)), rng, n_bootstrap)
        row |= {"share": share, "ci_low": low, "ci_high": high, "text_rate": rate, "excess": share - rate}
        row |= {"null_mean": mean, "excess_over_null": share - mean, "null_std": std, "p": p, "q": np.nan}
        rows.append(row | {"n_features": len(own), "n_contexts": n_contexts})
    table = pd.DataFrame(rows)
    return table.assign(q=benjamini_hochberg(table["p"].to_numpy(dtype=np.float64)))


def feature_table(
    sae: StackedSAE,
    contexts: FeatureContexts,
    shares: Float64[np.ndarray, " feature"],
    peaks: Peaks,
    documents: Sequence[WordedDocument],
) -> pd.DataFrame:
    """A row per feature that counts, with the words of its strongest contexts."""
    slots, index = stack_slots(sae), contexts.chosen[:, 0]
    n_content, n_labelled = _counts(contexts)
    said: list[list[str]] = [[] for _ in contexts.chosen]
    for feature, number, place in zip(contexts.feature, contexts.document, contexts.place, strict=True):
        if len(said[feature]) < N_WORDS:
            word = documents[number].word[place]
            said[feature].append(documents[number].words[word] if word >= 0 else "")
    return pd.DataFrame(
        {
            "layer": [slots[k].layer for k in index],
            "head": [slots[k].column for k in index],
            "feature": contexts.chosen[:, 1],
            "share": shares,
            "n_content": n_content,
            "n_function": n_labelled - n_content,
            "n_contexts": np.bincount(contexts.feature, minlength=len(contexts.chosen)),
            "n_activations": peaks.n_active.sum(0).numpy()[index, contexts.chosen[:, 1]].astype(np.int64),
            "n_documents": peaks.n_documents.sum(0).numpy()[index, contexts.chosen[:, 1]].astype(np.int64),
            "words": [json.dumps(own, ensure_ascii=False) for own in said],
        }
    )


def block_table(
    sae: StackedSAE,
    peaks: Peaks,
    documents: Sequence[WordedDocument],
    windows: DocumentWindows,
    n_blocks: int,
    counts: Mapping[str, int],
) -> pd.DataFrame:
    """A row per head and block: what the documents of all other blocks give; nan where they have no labelled token, or
    the head no feature that counts among them. Features are chosen anew, and contexts taken up behind those left out.

    counts: n_contexts, min_activations, min_documents.
    """
    slots, blocks = stack_slots(sae), np.array(peaks.blocks)
    labels = [own.label[at] for own, at in zip(documents, _counted(windows, peaks, documents), strict=True)]
    n_content = np.array([(own == IS_CONTENT).sum() for own in labels])
    n_labelled = np.array([(own != IS_NEITHER).sum() for own in labels])
    place = {"layer": [slot.layer for slot in slots], "head": [slot.column for slot in slots]}
    parts = []
    for block in range(n_blocks):
        contexts = choose_contexts(peaks, documents, **counts, without=block)
        shares = feature_shares(contexts)
        known = ~np.isnan(shares)
        index = contexts.chosen[known, 0]
        n_features, total = (np.bincount(index, own, len(slots)) for own in (None, shares[known]))
        share = _ratio(total, n_features)
        rate = float(_ratio(n_content[blocks != block].sum(), n_labelled[blocks != block].sum()))
        columns = {"block": block, "share": share, "text_rate": rate, "excess": share - rate}
        parts.append(pd.DataFrame(place | columns | {"n_features": n_features}))
    return pd.concat(parts, ignore_index=True)


def _sources(sae: StackedSAE) -> dict[str, list[Any]]:
    """The columns that say which SAE a row is of."""
    l1 = [np.nan if source.l1 is None else source.l1 for source in sae.info.sources]
    return {"l1": l1, "hook": [slot.hook_name for slot in stack_slots(sae)]}
