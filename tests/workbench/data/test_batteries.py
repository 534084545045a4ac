"""Prompts and recall items: what comes along, what is built of it, and files that are refused."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from workbench.data.batteries import (
    Battery,
    RecallSet,
    battery_items,
    read_batteries,
    read_battery,
    read_markers,
    read_prompts,
    read_recall,
)

HATS = RecallSet(
    kind="hats",
    statement="{name} wears a {value} hat.",
    question="The colour of {name}'s hat is {value}",
    names=("Anna", "Paul", "Mary", "John"),
    values=("red", "blue"),
)


def recall(sets):
    return battery_items(Battery(name="recall", sets=tuple(sets)))


def test_a_scenario_is_asked_in_all_eight_forms():
    items = [item for item in recall([HATS]) if item.scenario == 0]
    red, blue = "wears a red hat.", "wears a blue hat."
    told = [
        f"{a} {x} {b} {y}"
        for (a, b), (x, y) in itertools.product([("Anna", "Paul"), ("Paul", "Anna")], [(red, blue), (blue, red)])
    ]
    wanted = set()
    for text, asked in itertools.product(told, ("Anna", "Paul")):
        right = "red" if f"{asked} {red}" in text else "blue"
        wrong = "blue" if right == "red" else "red"
        wanted.add((f"{text} The colour of {asked}'s hat is", right, wrong))
    assert {(item.prompt, item.right, item.wrong) for item in items} == wanted
    assert len(items) == 8


def test_the_battery_is_balanced():
    for _, group in itertools.groupby(recall(read_recall()), key=lambda item: item.scenario):
        items = list(group)
        assert Counter(item.right for item in items) == Counter(item.wrong for item in items)
        # who says the last value, or the first, or the answer that stands nearest, is right in half of the forms
        last = [item.prompt.rfind(item.right) > item.prompt.rfind(item.wrong) for item in items]
        assert len(items) == 8
        assert sum(last) == 4
        by_place = Counter((item.right, is_last) for item, is_last in zip(items, last, strict=True))
        assert set(by_place.values()) == {2}


def test_minimal_pairs_are_balanced_and_said_once():
    for battery in read_batteries():
        items = battery_items(battery)
        assert len(items) >= 60
        assert len({(item.prompt, item.right) for item in items}) == len(items)
        assert all(len(item.prompt.split()) <= 14 for item in items)
        for _, group in itertools.groupby(items, key=lambda item: item.scenario):
            first, second = group
            assert (first.right, first.wrong) == (second.wrong, second.right)
            assert first.prompt != second.prompt
            assert first.kind == second.kind


def test_who_did_what_is_told_by_order_alone():
    (roles,) = [one for battery in read_batteries() for one in battery.sets if one.kind == "roles"]
    items = battery_items(Battery(name="cause", sets=(roles,)))
    for _, (a, b) in itertools.groupby(items, key=lambda item: item.scenario):
        assert Counter(a.prompt.lower().replace(",", "").split()) == Counter(b.prompt.lower().replace(",", "").split())
    is_first = [
        item.prompt.lower().find(item.right.lower()) < item.prompt.lower().find(item.wrong.lower()) for item in items
    ]
    assert sum(is_first) == len(items) / 2, "the first named is right as often as the last"


def test_a_file_takes_the_place_of_the_battery_of_its_name(tmp_path):
    row = '[a]\nscenarios = [["The dog", "is", "The dogs", "are"]]\n'
    for name in ("grammar", "sums"):
        (tmp_path / f"{name}.toml").write_text(row)
    found = read_batteries([tmp_path / "grammar.toml", tmp_path / "sums.toml"])
    assert [one.name for one in found] == ["grammar", "cause", "sums"]
    assert [(i.kind, i.scenario, i.prompt, i.right, i.wrong) for i in battery_items(found[0])] == [
        ("a", 0, "The dog", "is", "are"),
        ("a", 0, "The dogs", "are", "is"),
    ]
    with pytest.raises(ValueError, match="'sums' stands twice"):
        read_batteries([tmp_path / "sums.toml"] * 2)
    (tmp_path / "My file.toml").write_text(row)
    with pytest.raises(ValueError, match="is called 'My file'; expected small letters, digits and _"):
        read_battery(tmp_path / "My file.toml")


def test_what_comes_along():
    prompts = [prompt for one in read_prompts() for prompt in one.prompts]
    assert len(prompts) == 32
    assert len({item.scenario for item in recall(read_recall())}) == 32
    for phrases in read_markers().values():
        assert all(phrase == phrase.lower().strip() for phrase in phrases)
        assert len(set(phrases)) == len(phrases)
    assert set(read_markers()) == {"discourse", "dialogue"}


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_prompts, None, "prompts: no file"),
        (read_prompts, "", "is empty; expected a table"),
        (read_prompts, "[a\n", "is not TOML"),
        (read_prompts, "a = 1", "a is a int; expected a table"),
        (read_prompts, "[a]\nprompts = []", r"\[a\] prompts: "),
        (read_prompts, '[a]\nprompts = ["x", " y"]', "got ' y'; expected text without white space around it"),
        (read_prompts, '[a]\nprompts = ["x"]\n[b]\nprompts = ["x"]', "'x' stands twice"),
        (read_prompts, '[a]\nprompt = ["x"]', "prompts: Field required"),
        (read_recall, '[a]\nstatement = "{name} is."', "question: Field required"),
        (
            read_recall,
            '[a]\nstatement = "{name} is."\nquestion = "{name} is {value}"\nnames = ["A", "B"]\nvalues = ["x", "y"]',
            "statement: got '{name} is.'; expected one {name} and one {value}",
        ),
        (
            read_recall,
            '[a]\nstatement = "{name} {value}."\nquestion = "{value}, {name}"\nnames = ["A", "B"]\nvalues = ["x", "y"]',
            "expected a sentence that ends in ' {value}'",
        ),
        (
            read_recall,
            '[a]\nstatement = "{name} {value}."\nquestion = "{name} {value}"\nnames = ["A", "A"]\nvalues = ["x", "y"]',
            "names: 'A' stands twice",
        ),
        (read_battery, None, "battery: no file"),
        (read_battery, "[a]\nscenarios = []", r"\[a\] scenarios: "),
        (read_battery, '[a]\nscenarios = [["x", "y", "z"]]', r"\[a\] scenarios.0.3: Field required"),
        (read_battery, '[a]\nscenarios = [["x", "y", "x", "z"]]', "scenarios: 'x' stands twice"),
        (read_battery, '[a]\nscenarios = [["x", "y", "z", "y"]]', "scenarios: 'y' stands twice"),
        (
            read_battery,
            '[a]\nscenarios = [["x ", "y", "z", "w"]]',
            "got 'x '; expected text without white space around it",
        ),
        (
            read_battery,
            '[a]\nscenarios = [["x", "y", "z", "w"], ["x", "y", "v", "w"]]',
            "scenarios: 'x y' stands twice",
        ),
        (read_battery, '[a]\nscenarios = [["x", "y", "z", "w"]]\nvalues = ["x"]', "unknown key 'values'"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path, reader, text, message):
    file = tmp_path / "file.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        reader(file)
