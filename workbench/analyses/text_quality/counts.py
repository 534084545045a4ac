"""What can be counted in a continuation without a tagger: sentences, words, markers, repeated words.

Everything is counted where it stands in the continuation, read together with its prompt, so that a sentence or a
quotation that the prompt has opened is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from workbench.data.batteries import read_markers

_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
# an end of sentence: its marks, what closes behind them, then white space or the end of the text
_END = re.compile(r"(?P<marks>[.?!…]+)[\"'”’)\]]*(?=\s|$)")
_PARAGRAPH = re.compile(r"\n\s*\n")
_NO_END = frozenset(
    (
        "mr", "mrs", "ms", "messrs", "dr", "st", "rev", "hon", "sir", "col", "gen", "capt", "lieut", "prof", "sr", "jr",
        "vs", "etc", "no", "vol", "ch", "i.e", "e.g", "viz", "esq", "u.s",
    )
)  # fmt: skip
_SPEAKER = re.compile(r"^[ \t]*[A-Z][\w.’' ]{0,30}:(?=\s)", re.MULTILINE)


def words(text: str) -> list[str]:
    """The words of a text in small letters: runs of letters, joined by inner apostrophes and hyphens. No numbers.

    >>> words("Don't go to the half-built No. 10!")
    ["don't", 'go', 'to', 'the', 'half-built', 'no']
    """
    return [word for word, _, _ in word_spans(text)]


def word_spans(text: str) -> list[tuple[str, int, int]]:
    """(word, start, stop) of the words of a text, in characters; see `words`."""
    return [(m.group().replace("’", "'").lower(), m.start(), m.end()) for m in _WORD.finditer(text)]


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, stop) of every complete sentence, in characters: one that ends in a full stop, ?, ! or an ellipsis.

    A mark ends a sentence if white space or the end of the text follows (behind closing quotes and brackets) and the
    next letter is no small one, so that “Where?” said she. is one sentence; a full stop behind an abbreviation or a
    single capital ends none. An empty line ends what stands before it; without a mark this is no sentence (a heading,
    or the rest of a text that was cut off).

    >>> [text[a:b] for text in ['Mr. A. Hill came. “Why?” said she.'] for a, b in sentences(text)]
    ['Mr. A. Hill came.', '“Why?” said she.']
    """
    found = []
    starts = [0, *(match.end() for match in _PARAGRAPH.finditer(text))]
    stops = [*(match.start() for match in _PARAGRAPH.finditer(text)), len(text)]
    for begin, end in zip(starts, stops, strict=True):
        paragraph, start = text[begin:end], 0
        for match in _END.finditer(paragraph):
            if _is_end(paragraph, match):
                found.append((begin + _skip_space(paragraph, start), begin + match.end()))
                start = match.end()
    return found


def _skip_space(text: str, start: int) -> int:
    return start + len(text[start:]) - len(text[start:].lstrip())


def _is_end(text: str, match: re.Match[str]) -> bool:
    rest = text[match.end() :].lstrip().lstrip("\"'“‘([")
    if rest[:1].islower():
        return False
    if match["marks"] != ".":
        return True
    before = text[: match.start()].split()
    word = before[-1].lstrip("\"'“‘([") if before else ""
    return word.lower() not in _NO_END and not (len(word) == 1 and word.isupper() and word != "I")


def count_sentences(prompt: str, text: str) -> tuple[int, int]:
    """(interrogative ones, all) of the complete sentences that end in the continuation; interrogative: with a ?."""
    whole = prompt + text
    ended = [whole[start:stop] for start, stop in sentences(whole) if stop > len(prompt)]
    return sum("?" in sentence for sentence in ended), len(ended)


def count_discourse(text: str) -> int:
    """Discourse markers, by their form: the longest at each place, none counted twice."""
    return len(_pattern("discourse").findall(text))


def count_dialogue(prompt: str, text: str) -> int:
    """Dialogue markers: quotations opened, verbs of saying by their form, and names of speakers before a line.

    “ opens a quotation, and so does every straight " that does not close one since the last empty line. A speaker's
    name is up to 31 characters from a capital to a colon, at the start of a line.
    """
    whole = prompt + text
    opened = _opened(whole) - _opened(prompt)
    speakers = sum(match.end() > len(prompt) for match in _SPEAKER.finditer(whole))
    return opened + len(_pattern("dialogue").findall(text)) + speakers


def _opened(text: str) -> int:
    return text.count("“") + sum((part.count('"') + 1) // 2 for part in _PARAGRAPH.split(text))


@cache
def _pattern(kind: str) -> re.Pattern[str]:
    longest_first = sorted(read_markers()[kind], key=len, reverse=True)
    phrases = (r"\s+".join(re.escape(word) for word in phrase.split()) for phrase in longest_first)
    return re.compile(rf"(?<![\w'’-])(?:{'|'.join(phrases)})(?![\w'’-])", re.IGNORECASE)


def count_distinct(texts: Iterable[Sequence[str]], n: int) -> tuple[int, int]:
    """(distinct n-grams, all n-grams) of several texts' words, none across two texts."""
    grams = [gram for text in texts for gram in zip(*(text[i:] for i in range(n)), strict=False)]
    return len(set(grams)), len(grams)
