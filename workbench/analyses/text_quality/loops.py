"""Whether a continuation has got stuck, and how: in a cycle, in a list that counts on, or in one that names on.

Lists are looked for in the symbols of a text: words in small letters, numbers, ends of line, single other marks.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

LOOP_TAIL, LOOP_CYCLE = 32, 16  # last tokens looked at; longest cycle that they may repeat
N_COUNTERS = 5  # numbers of a list that counts on, at least
MAX_STRIDE = 3  # of how many numbers one may be the counter, as the first of two in "2 of 10"
MAX_GAP = 24  # symbols between a counter and the next, and behind the last
N_ITEMS = 8  # complete items of a list that names on, at least
ITEM_SYMBOLS, SLOT_WORDS = 8, 3  # longest item; longest part in which items differ
SEPARATORS = (",", ";", ".", "!", "?", "\n", "and", "or")
MAX_DIGITS = 15  # longer runs of digits count nothing
_SYMBOL = re.compile(r"\d+|[^\W\d_]+(?:['’\-][^\W\d_]+)*|\n\s*|\S")

LoopKind = Literal["cycle", "increment", "enumeration"]


def loop_kind(tokens: Sequence[int], text: str, is_ended: bool) -> LoopKind | None:
    """The one kind of loop that a continuation ends in, the first of these; None: in none.

    cycle: as `is_loop`. increment, enumeration: as `counts_on` and `names_on`, unless the model ended the text itself:
    a list that ends is no loop.
    """
    if is_loop(tokens):
        return "cycle"
    if is_ended:
        return None
    if counts_on(text):
        return "increment"
    return "enumeration" if names_on(text) else None


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether the last 32 tokens repeat a cycle of at most 16; a shorter text is no loop.

    >>> is_loop([9, *[1, 2, 3] * 12]), is_loop(range(40)), is_loop([1] * 31)
    (True, False, False)
    """
    tail = list(tokens[-LOOP_TAIL:])
    return len(tail) == LOOP_TAIL and any(
        all(a == b for a, b in zip(tail, itertools.islice(tail, cycle, None), strict=False))
        for cycle in range(1, LOOP_CYCLE + 1)
    )


def symbols(text: str) -> list[str]:
    r"""What lists are looked for in.

    >>> symbols("1. Don't go!\n\n 2.")
    ['1', '.', "don't", 'go', '!', '\n', '2', '.']
    """
    return ["\n" if one.isspace() else one.lower().replace("’", "'") for one in _SYMBOL.findall(text)]


def counts_on(text: str) -> bool:
    r"""Whether a text ends in a list whose numbers go on rising, or falling, by equal steps.

    Its last 5 numbers are equally far apart, and not equal; or every second of the last 10, or third of the last 15,
    if those between are so too or stay the same. The same symbol stands before every one of them but the first, or
    behind every one but the last. From one to the next, and from the last to the end, are at most 24 symbols. A number
    at the very end may be cut off, and is not looked at.

    >>> counts_on("1. Yes.\n2. No.\n3. Yes.\n4. Who?\n5. He."), counts_on("1, 2, 3, 5, 8, 13, 21,")
    (True, False)
    """
    found = symbols(text)
    if found and found[-1].isdecimal():
        found.pop()
    places = [i for i, one in enumerate(found) if one.isdecimal()]
    return any(_has_counter(found, places, stride) for stride in range(1, MAX_STRIDE + 1))


def _has_counter(found: list[str], places: list[int], stride: int) -> bool:
    last = places[-N_COUNTERS * stride :]
    if len(last) < N_COUNTERS * stride or any(len(found[i]) > MAX_DIGITS for i in last):
        return False
    at = np.array(last).reshape(N_COUNTERS, stride)
    steps = np.diff(np.array([int(found[i]) for i in last]).reshape(at.shape), axis=0)
    return bool((steps == steps[0]).all()) and any(
        _is_framed(found, at[:, column].tolist()) for column in np.flatnonzero(steps[0])
    )


def _is_framed(found: list[str], counters: list[int]) -> bool:
    if max(b - a - 1 for a, b in itertools.pairwise([*counters, len(found)])) > MAX_GAP:
        return False
    before = {_form(found[i - 1]) for i in counters[1:]}
    behind = {_form(found[i + 1]) for i in counters[:-1]}
    return min(len(before), len(behind)) == 1


def _form(symbol: str) -> str:
    return "0" if symbol.isdecimal() else symbol


def names_on(text: str) -> bool:
    """Whether a text ends in a list that names one thing after another and has come back to one of them.

    Cut at one of the separators (, ; . ! ? end of line, and, or), its last 8 items before the last cut have 1 to 8
    symbols each. Less what all begin and end with, at most 3 words remain of each, which are not the same in all. One
    of the 8 stands there twice, or stood there before. What is behind the last cut is an item or its beginning. An
    "and" or "or" behind another separator, and an end of line beside it, belong to the separator.

    >>> names_on("Kant, Hume, Mill, Hume, Plato, and Hume, Kant, Mill, Hu"), names_on("a, b, c, d, e, f, g, h, i")
    (True, False)
    """
    found = symbols(text)
    return any(_has_list(found, separator) for separator in SEPARATORS)


def _has_list(found: list[str], separator: str) -> bool:
    *listed, rest = _split(found, separator)
    items = listed[-N_ITEMS:]
    if len(items) < N_ITEMS or len(rest) > ITEM_SYMBOLS or not all(1 <= len(item) <= ITEM_SYMBOLS for item in items):
        return False
    n_before = _n_common(items)
    n_behind = _n_common([item[n_before:][::-1] for item in items])
    slots = [tuple(item[n_before : len(item) - n_behind]) for item in items]
    frame = {*items[0][:n_before], *items[0][len(items[0]) - n_behind :]}
    return (
        max(map(len, slots)) <= SLOT_WORDS
        and all(one[0].isalnum() for slot in slots for one in slot)
        and all(one[0].isalnum() or one in frame for one in rest)
        and len(set(slots)) > 1
        and any(listed.count(item) > 1 for item in items)
    )


def _split(found: list[str], separator: str) -> list[list[str]]:
    """The items between separators, and what stands behind the last."""
    parts: list[list[str]] = [[]]
    for one in found:
        if one == separator:
            parts.append([])
        elif parts[-1] or one not in ("\n", "and", "or"):
            parts[-1].append(one)
    return [_less_line_end(part) for part in parts]


def _less_line_end(part: list[str]) -> list[str]:
    return part[:-1] if part[-1:] == ["\n"] else part


def _n_common(items: list[list[str]]) -> int:
    """How many symbols all items begin with."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*items, strict=False)))
