"""Kinds of loops, against plain loops over the symbols, lists made for the purpose, and real text."""

from __future__ import annotations

import random
from os.path import commonprefix

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.analyses.text_quality import loops
from workbench.analyses.text_quality.loops import counts_on, is_loop, loop_kind, names_on, symbols
from workbench.data.corpus import read_documents

NAMES = ["Plato", "Kant", "Hume", "Mill", "Locke", "Hegel", "Marx", "Zeno", "Ada Love", "Bacon", "Bentham", "Comte"]


def repeats_naively(tokens):
    tail = list(tokens)[-32:]
    if len(tail) < 32:
        return False
    for cycle in range(1, 17):
        unit = tail[:cycle]
        if (unit * 32)[:32] == tail:
            return True
    return False


@given(
    st.lists(st.integers(0, 1), max_size=6), st.lists(st.integers(0, 2), min_size=1, max_size=18), st.integers(0, 40)
)
def test_cycles(head, cycle, n):
    tokens = head + (cycle * 40)[:n]
    assert is_loop(tokens) == repeats_naively(tokens)
    assert is_loop((cycle * 40)[:32]) or len(cycle) > 16


def test_a_cycle_of_sixteen_is_the_longest():
    assert is_loop([*range(16)] * 2)
    assert not is_loop([*range(17)] * 3)
    assert not is_loop([1] * 31), "too short to tell"


def counts_on_naively(text):
    found = symbols(text)
    if found and found[-1].isdecimal():
        found = found[:-1]
    numbers = [(i, int(one)) for i, one in enumerate(found) if one.isdecimal()]
    for stride in (1, 2, 3):
        if len(numbers) < 5 * stride:
            continue
        lists = [numbers[len(numbers) - 5 * stride + k :: stride] for k in range(stride)]
        if any(b[1] - a[1] != own[1][1] - own[0][1] for own in lists for a, b in zip(own, own[1:], strict=False)):
            continue
        for own in lists:
            if own[0][1] == own[1][1]:
                continue
            gaps = [b[0] - a[0] - 1 for a, b in zip(own, own[1:], strict=False)] + [len(found) - own[-1][0] - 1]
            shown = ["#" if one.isdecimal() else one for one in found]
            before, behind = {shown[i - 1] for i, _ in own[1:]}, {shown[i + 1] for i, _ in own[:-1]}
            if max(gaps) <= 24 and (len(before) == 1 or len(behind) == 1):
                return True
    return False


def names_on_naively(text):
    for separator in (",", ";", ".", "!", "?", "\n", "and", "or"):
        items, item = [], []
        for one in [*symbols(text), separator]:
            if one == separator:
                while item and item[0] in ("\n", "and", "or"):
                    item = item[1:]
                items.append(item[:-1] if item and item[-1] == "\n" else item)
                item = []
            else:
                item.append(one)
        rest, items = items[-1], items[:-1]
        last = items[-8:]
        if len(last) < 8 or len(rest) > 8 or not all(0 < len(own) < 9 for own in last):
            continue
        head = commonprefix(last)
        bodies = [own[len(head) :] for own in last]
        foot = commonprefix([own[::-1] for own in bodies])
        slots = [own[: len(own) - len(foot)] for own in bodies]
        words = all(symbol[0].isalnum() for slot in slots for symbol in slot)
        known = all(symbol[0].isalnum() or symbol in head + foot for symbol in rest)
        differ = any(slot != slots[0] for slot in slots)
        twice = any(sum(own == other for other in items) > 1 for own in last)
        if words and known and differ and twice and max(map(len, slots)) <= 3:
            return True
    return False


@pytest.mark.parametrize("seed", range(4))
def test_lists_against_plain_loops(seed):
    rng = random.Random(seed)
    seen = {"counts": set(), "names": set()}
    for _ in range(1500):
        start, step, n = rng.randint(0, 9), rng.choice([-1, 0, 1, 2]), rng.randint(4, 14)
        frame = rng.choice([["{}", "."], ["(", "{}", ")"], ["page", "{}", "of", "9"], ["{}"], ["x", "{}", "-", "{}"]])
        parts = []
        for i in range(n):
            parts += [one.replace("{}", str(abs(start + step * i))) for one in frame]
            parts += rng.choices(["a", "b", ",", "\n"], k=rng.choice([0, 0, 3, 23, 24, 25]))
        if rng.random() < 0.3:
            parts[rng.randrange(len(parts))] = rng.choice(["7", "a"])
        text = " ".join(parts)
        seen["counts"].add(counts_on(text))
        assert counts_on(text) == counts_on_naively(text), text
        mark = rng.choice([",", ".", "\n", " and", " ; and", ",\n"])
        shape = rng.choice(["{}", "the {}", "He was {} once", "- {}", "{} {}"])
        text = "".join(
            shape.replace("{}", rng.choice(NAMES[: rng.choice([1, 3, 12])])) + mark + " "
            for _ in range(rng.randint(6, 14))
        ) + rng.choice(["", "Pla", "He", "- P", "a ( b", "a b c d e f g h i"])
        seen["names"].add(names_on(text))
        assert names_on(text) == names_on_naively(text), text
    assert seen == {"counts": {True, False}, "names": {True, False}}


@given(st.text(alphabet="1239 .,;\nabA'’-½²٣"))
def test_any_text_has_an_answer(text):
    assert counts_on(text) == counts_on_naively(text)
    assert names_on(text) == names_on_naively(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("".join(f"\n{i}. The soul is the body." for i in range(1, 9)), "increment"),
        ("".join(f"\n{i}. The {name} is old." for i, name in enumerate(NAMES)), "increment"),
        ("".join(f" Chapter {i}" for i in range(3, 20, 2)), "increment"),
        ("".join(f" In {i}, he wrote a book." for i in range(1990, 1980, -1)), "increment"),
        ("".join(f" {i} of 10," for i in range(1, 9)), "increment"),
        ("1 2 3 4 5 6 7 8 9 10 1", "increment"),
        ("1,000, 1,001, 1,002, 1,003, 1,004, 1,0", "increment"),
        (", ".join([*NAMES, "Kant", "Kant"]) + ", Ka", "enumeration"),
        (", ".join(NAMES * 2), "enumeration"),
        (" and ".join([*NAMES, "Kant", "Hume"]), "enumeration"),
        ("".join(f" He was a {name}." for name in [*NAMES, "Hume"]) + " He w", "enumeration"),
        ("".join(f"\n- {name}" for name in [*NAMES, "Hume", "Mill"]), "enumeration"),
        # a list that stops, does not come back, is short, or counts by no step
        ("".join(f"\n{i}. Yes." for i in range(1, 9)) + "\n\nThen he went home, and they were " + "so " * 20, None),
        (", ".join([*NAMES, "Kant", "Kant", "Plato"]) + ". They were all there.", None),
        (", ".join(NAMES), None),
        (", ".join(["Kant", "Hume", "Kant", "Hume"]), None),
        ("1. A\n2. B\n3. C\n4. D\n", None),
        ("1, 2, 3, 5, 8, 13, 21, 34, ", None),
        ("1. " * 9, None),
        ("9" * 5000 + ", ", None),
        ("", None),
    ],
)
def test_lists_made_for_the_purpose(text, kind):
    assert loop_kind(range(40), text, is_ended=False) == kind
    assert loop_kind(range(40), text, is_ended=True) is None, "the model ended it"
    assert loop_kind([1] * 32, text, is_ended=True) == "cycle", "an exact cycle comes first"


def test_real_text_has_next_to_none():
    """Passages of 400 characters, wherever they end: a numbered list may still be running there."""
    passages = [
        document.text[start : start + 400]
        for document in read_documents("embedded")[::8]
        for start in range(0, len(document.text) - 400, 400)
    ]
    kinds = [loop_kind((), passage, is_ended=False) for passage in passages]
    assert len(passages) > 3000
    assert kinds.count("increment") <= len(passages) / 1000
    assert kinds.count("enumeration") == 0


def test_both_at_once_are_an_increment():
    text = "".join(f"{i}, Kant, " for i in range(1, 9))
    assert counts_on(text)
    assert loops.loop_kind((), text, is_ended=False) == "increment"
