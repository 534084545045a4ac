"""Articles of a text in WikiText's shape, whose rows are lines: where one begins, and its rows joined.

WikiText (Merity et al. 2017) marks the heading of an article ` = Title = ` and that of a section ` = = Section = = `,
one sign more for each level below, with a blank row before and after every heading.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def article_title(row: str) -> str | None:
    """The title of an article's heading, a row of level 1; None for any other row.

    The level is the number of signs on the side that has fewer, so that a title may contain signs and begin or end with
    one: ` = E = mc = ` is titled "E = mc" and ` = = = ` nothing.

        >>> [article_title(row) for row in (" = Valkyrie = \\n", " = = Setting = = \\n", " = \\n", "a = b = \\n")]
        ['Valkyrie', None, None, None]
    """
    row = row.strip()
    title = row[1:-1].strip()
    if not row.startswith("= ") or not row.endswith(" =") or "\n" in row or not title.strip("= "):
        return None
    return None if title.startswith("= ") and title.endswith(" =") else title


def join_articles(files: Iterable[Iterable[str]]) -> Iterator[tuple[str, str]]:
    """(title, text) of every article: its rows, from one article's heading to the next, put together as they are.

    Rows go on from file to file, as in a text that is stored in several. As soon as a blank row was seen, a heading
    must have one before and after it, or the edge of its file: ` = 2 = ` within a paragraph is text. Blank rows before
    the first heading belong to its article; other rows before it are a text of their own, with an empty title.
    No character is changed or left out; a row that does not end in a line break gets one before the next row.
    """
    title, rows, has_blank = "", list[str](), False
    for file in files:
        is_free = True  # whether what stands before the row is blank, or the file's edge
        for row, following in _with_next(file):
            found = article_title(row)
            if found is not None and has_blank:
                found = found if is_free and (following is None or not following.strip()) else None
            if found is not None:
                if any(line.strip() for line in rows):
                    yield title, _join(rows)
                    rows = []
                title = found
            rows.append(row)
            is_free = not row.strip()
            has_blank = has_blank or is_free
    if any(line.strip() for line in rows):
        yield title, _join(rows)


def _with_next(rows: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Each row with the one after it, None after the last."""
    iterator = iter(rows)
    row = next(iterator, None)
    while row is not None:
        following = next(iterator, None)
        yield row, following
        row = following


def _join(rows: list[str]) -> str:
    return "".join(row if not row or row.endswith("\n") else f"{row}\n" for row in rows[:-1]) + rows[-1]
