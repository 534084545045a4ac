"""How a verb ends: exit codes, and one line on stderr in place of a traceback."""

from __future__ import annotations

import contextlib
import errno
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import typer

MAX_LINE = 560  # letters of an error
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(ValueError):
    """A fault of the command line itself: exit code 2."""


def refuse_unused(ctx: typer.Context, *names: str, where: str, expected: str) -> None:
    """Raise UsageError naming those of the verb's options that were given on the command line and that nothing reads.

    Args:
        ctx: the verb's, which knows what was given and what is a default.
        names: the options, by the names of the verb's parameters.
        where: what makes them void, such as "with --temperature 0".
        expected: with what they would be read.
    """
    options = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    sources = {name: ctx.get_parameter_source(name) for name in names}
    given = [options[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        spelt = ", ".join(given)
        raise UsageError(
            f"{spelt}: got {where}, where nothing reads {'them' if given[1:] else 'it'}; expected {expected}"
        )


def guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, its exceptions turned into `error: …` on stderr and an exit code; with --debug they pass through."""

    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        with noting_interrupts() as noted:
            try:
                verb(*args, **kwargs)
            except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
                raise  # the command-line library's own
            except BaseException as error:
                if kwargs.get("debug") or not (isinstance(error, Exception | KeyboardInterrupt) or is_panic(error)):
                    raise
                failed = KeyboardInterrupt() if noted and not is_interrupt(error) else error
                typer.echo(describe(failed), err=True)
                raise typer.Exit(exit_code(failed)) from None

    return run


@contextlib.contextmanager
def noting_interrupts() -> Iterator[list[int]]:
    """A list that holds SIGINT once it has raised KeyboardInterrupt, which libraries may swallow and fail in words of
    their own: torch, asked for a file's tensor meanwhile, says that a shape cannot be determined.

    Where SIGINT is not Python's own to take (outside the main thread, or taken or ignored by others), it stays empty.
    """
    noted: list[int] = []
    if (
        threading.current_thread() is not threading.main_thread()
        or (before := signal.getsignal(signal.SIGINT)) is not signal.default_int_handler
    ):
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def show_warning(message: Warning | str, *_: Any) -> None:
    """One line on stderr, without the source line that Python shows beside it; takes `warnings.showwarning`'s place."""
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


def exit_code(error: BaseException) -> int:
    """130 for an interrupt, 2 for a fault of the command line, else 1."""
    if is_interrupt(error):
        return INTERRUPTED
    return USAGE if isinstance(error, UsageError) else FAILED


def is_interrupt(error: BaseException) -> bool:
    """Whether someone asked to stop. The class of training's own interrupt is looked up only where it is loaded."""
    module = sys.modules.get("workbench.training.interrupts")
    return isinstance(error, KeyboardInterrupt) or (module is not None and isinstance(error, module.Interrupted))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or the device did not suffice, to this error or to the one it was raised from:
    torch says so on a CPU by a bare RuntimeError, a thread that has no room for its stack by the words of who wanted
    it, the system by ENOMEM (opening a file, listing a folder), and libraries written in Rust by its number."""
    if error.__cause__ is not None and is_out_of_memory(error.__cause__):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"} or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if f"(os error {errno.ENOMEM})" in str(error):
        return True
    if isinstance(error, SystemError):  # of an extension that found no room and did not say so
        return _is_at_limit()
    if is_panic(error):
        return "ThreadPoolBuildError" in str(error)
    # an ImportError where a library finds no room
    return isinstance(error, RuntimeError | ImportError) and any(
        w in str(error) for w in ("allocate memory", "start new thread", "failed to map segment")
    )


def _is_at_limit() -> bool:
    """Whether a limit of this process's address space leaves it next to nothing."""
    try:
        import resource
    except ImportError:  # not on Windows
        return False
    limit, statm = resource.getrlimit(resource.RLIMIT_AS)[0], Path("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not statm.is_file():
        return False
    return limit - int(statm.read_text().split()[0]) * resource.getpagesize() < 64 << 20


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up (tokenizers, safetensors): no Exception to Python, though it is one."""
    return type(error).__name__ == "PanicException"


def _words(error: Any) -> str:
    """What the error says; the fields of a settings' record by name, without the library's own remarks."""
    pydantic = sys.modules.get("pydantic")  # asked only if the verb used it: this module must not load it
    if pydantic is not None and isinstance(error, pydantic.ValidationError):
        from workbench.runs.records import describe_errors

        return describe_errors(error)
    return str(error)


def describe(error: BaseException) -> str:
    """One line for a person, of what a terminal shows as it is: names of files may hold any character."""
    text = " ".join(_words(error).split("\n")).strip()
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) > MAX_LINE:  # what was given may be a page long: how it begins, and what is wanted
        text = f"{text[: MAX_LINE - 200]} … {text[-150:]}"
    if is_interrupt(error):
        return f"interrupted: {text or 'stopped before the end; --resume goes on where the verb can'}"
    if is_out_of_memory(error):
        least = "expected less at once: a smaller batch, window, budget or model"
        return f"error: out of memory ({text or 'no room'}); {least}"
    if isinstance(error, ValueError | OSError):
        return f"error: {text or type(error).__name__}"
    return f"error: {type(error).__name__}: {text or 'no message'} (--debug shows where)"
