"""Signals that ask training to stop: noted at once, acted on between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Training stopped before its end, on request; the state is saved and the run can be resumed. Exit code 130."""


class StopRequest:
    """Whether someone asked to stop, and how."""

    def __init__(self) -> None:
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self.reason)


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM raises Interrupted, as SIGINT raises KeyboardInterrupt: for one who waits for others.

    Outside the main thread signals cannot be caught, and nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}; go on with --resume")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def stop_requests(*, is_patient: bool = False) -> Iterator[StopRequest]:
    """A `StopRequest` that the first SIGINT or SIGTERM sets; a second one acts as it would have without us.

    is_patient: further ones are noted like the first. torchrun passes on as SIGTERM the Ctrl-C that its processes have
    had themselves, while they are still saving.

    Outside the main thread signals cannot be caught, and the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.reason = request.reason or signal.Signals(number).name
        if not is_patient:
            restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
