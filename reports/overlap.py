"""Windows of one text laid over each other again, so that what they share is stored once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

KEY = 4  # tokens that must agree before a longer comparison is worth it
MOST_TRIED = 64  # windows that begin alike, compared before the next offset is tried: bounds the time on periodic text


def overlay(windows: Sequence[tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """Return a line of tokens and each window's place in it: `line[place : place + len(window)] == window`.

    Windows are chained greedily: behind a window comes the one that overlaps its end most, and only what is new of it
    is appended. Contexts cut from one text share most of their tokens, so the line is about as long as the text that
    they cover. Nothing is lost where nothing overlaps: the line then holds the windows one behind the other.
    """
    waiting: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number in range(len(windows) - 1, -1, -1):  # reversed: the first of equals is popped first
        waiting[windows[number][:KEY]].append(number)
    line: list[int] = []
    places = [-1] * len(windows)
    for number, window in enumerate(windows):
        if places[number] >= 0:
            continue
        waiting[window[:KEY]].remove(number)
        current, place = window, len(line)
        places[number] = place
        line.extend(window)
        while (found := _next_window(windows, waiting, current)) is not None:
            offset, following = found
            places[following] = place + offset
            new = windows[following][len(current) - offset :]
            if new:  # else it lies inside the current window, which stays the end of the chain
                line.extend(new)
                current, place = windows[following], place + offset
    return line, places


def _next_window(
    windows: Sequence[tuple[int, ...]], waiting: dict[tuple[int, ...], list[int]], current: tuple[int, ...]
) -> tuple[int, int] | None:
    """Return (offset, number) of a waiting window that continues `current`, the earliest offset first; it is taken."""
    for offset in range(len(current) - KEY + 1):
        candidates = waiting.get(current[offset : offset + KEY])
        if not candidates:
            continue
        for index in range(len(candidates) - 1, max(-1, len(candidates) - 1 - MOST_TRIED), -1):
            window = windows[candidates[index]]
            shared = min(len(window), len(current) - offset)
            if window[:shared] == current[offset : offset + shared]:
                return offset, candidates.pop(index)
    return None
