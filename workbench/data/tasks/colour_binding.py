"""Colour binding: whose hat has which colour, with the hats of the recall battery."""

from __future__ import annotations

import itertools

from workbench.data.batteries import RecallSet, read_recall
from workbench.data.tasks.template_task import TemplateTask
from workbench.data.tasks.templates import TaskForm, Template

KIND = "hats"
ABOUT = "The colour of a person's hat is the one that was said of that person."


def colour_binding(name: str = "colour_binding") -> TemplateTask:
    """Two people, two colours and a question about one of them, in all eight forms: who is told of first × who is asked
    about × who has which colour, the last as the mirror. The corrupt prompt has the colours swapped; of the task
    `colour_binding_query` it asks about the other person."""
    hats = next(own for own in read_recall() if isinstance(own, RecallSet) and own.kind == KIND)
    forms = itertools.product((0, 1), repeat=2)
    templates = tuple(_template(hats, *form, is_query=name.endswith("query")) for form in forms)
    form = TaskForm(
        about=ABOUT,
        words={"names": hats.names, "colours": hats.values},
        items={"person": "names", "other": "names", "colour": "colours", "others_colour": "colours"},
        templates=templates,
    )
    return TemplateTask.of_form(name, form)


def _template(hats: RecallSet, first: int, asked: int, *, is_query: bool) -> Template:
    """The person asked about is `person`; told of first with first = asked. asked exchanges the people's names, so that
    each is asked about."""
    people = ("person", "other") if not asked else ("other", "person")
    has = dict(zip(people, ("colour", "others_colour"), strict=True))
    order = people if first == 0 else people[::-1]

    def text(colours: dict[str, str], who: str) -> str:
        told = [
            hats.statement.format(
                name=f"{{{one}@{_named(one, people)}_name}}", value=f"{{{colours[one]}@{_named(one, people)}_value}}"
            )
            for one in order
        ]
        question = hats.question.removesuffix(" {value}").format(name=f"{{{who}@query}}")
        return " ".join([*told, question])

    swapped = dict(zip(has, reversed(has.values()), strict=True))
    corrupt = text(has, people[1]) if is_query else text(swapped, people[0])
    return Template(
        clean=text(has, people[0]), corrupt=corrupt, answer=" {colour}", foil=" {others_colour}",
        swap=(("colour", "others_colour"),), group=KIND,
    )  # fmt: skip


def _named(one: str, people: tuple[str, str]) -> str:
    return "told" if one == people[0] else "other"
