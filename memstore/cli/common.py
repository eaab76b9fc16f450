"""The parts that all commands share: exit codes, errors in one line, the choice of a buffer, printing."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from rich.console import Console

from memstore.cli.output import EXIT_INTERRUPTED, complain
from memstore.cli.output import console as console
from memstore.cli.text import json_ready
from memstore.errors import ConfigError, InvalidValue, MemstoreError
from memstore.storage.address import shown_address

if TYPE_CHECKING:
    from memstore.memory import EpisodicMemory

P = ParamSpec("P")
T = TypeVar("T")

EXIT_FOUND = 1
"""A check that found problems has this exit code, and so does a question about an episode that is not live."""
EXIT_USAGE = 2
"""Wrong usage, or a wrong setting, has this exit code."""
EXIT_ERROR = 3
"""An error of the database has this exit code."""

EXIT_CODES = (
    "Exit codes: 0 done, 1 check found problems or there is no such episode, 2 wrong usage or settings, "
    "3 the database refused, 4 standard output cannot be written, 130 interrupted, 141 nobody reads the output."
)
"""The help of the command shows these exit codes."""

PICTURE_WIDTH = 80
"""Without a terminal, pictures and curves have this width in characters."""

COUNT = click.IntRange(1)
"""An option that limits the number of rows has this type."""

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
DB = click.argument("db")
"""This argument gives the address of a database."""
BUFFER = click.option("--buffer", metavar="NAME", help="Use this buffer.  [default: the only one]")
"""Commands that work on one buffer have this option."""
ALL_BUFFERS = click.option("--buffer", metavar="NAME", help="Use this buffer.  [default: all of them]")
"""Commands that work on every buffer have this option."""


def command(
    example: str, *options: Callable[[Any], Any], help: str | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function, with an example in its help, these options, and ``--json``.

    Memstore's errors become one line and an exit code, see `report_errors`.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        run: Callable[..., None] = report_errors(function)
        for option in (as_json_option, *reversed(options)):
            run = option(run)
        return click.command(help=help, epilog=f"Example:  {example}")(run)

    return decorate


def report_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn memstore's errors into one line and an exit code. Any other error is a bug and keeps its traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _end_on_signals():
                command(*args, **kwargs)
        except MemstoreError as exc:
            complain(str(exc))
            sys.exit(EXIT_USAGE if isinstance(exc, (ConfigError, InvalidValue)) else EXIT_ERROR)
        except KeyboardInterrupt:
            complain("interrupted; everything committed so far is kept")
            sys.exit(EXIT_INTERRUPTED)

    return run


@contextmanager
def _end_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does: open writes are undone, unfinished files removed."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield
        return

    def end(number: int, _frame: object) -> None:
        click.echo(f"memstore: ended by {signal.Signals(number).name}; everything committed so far is kept", err=True)
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # A signal that has a handler already, or is ignored (SIGHUP under nohup), is left alone.
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is signal.SIG_DFL}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def open_buffer(db: str, buffer: str | None) -> Iterator[EpisodicMemory]:
    """Open the buffer of this name; without a name, the only buffer of the database.

    Raises
    ------
    ConfigError
        There is no buffer, or there are several and no name says which.
    """
    import memstore

    if buffer is None:
        names = memstore.buffers(db)
        if len(names) != 1:
            listed = ", ".join(map(repr, names))
            hint = f"choose one with --buffer: {listed}" if names else "memstore.open makes one"
            raise ConfigError(f"{shown_address(db)} holds {len(names)} buffers; {hint}")
        buffer = names[0]
    with memstore.open(db, buffer=buffer, create=False, cache_bytes=0) as memory:
        yield memory


def ask_each_buffer(db: str, buffer: str | None, ask: Callable[[EpisodicMemory], T]) -> list[T]:
    """Return the answers of all buffers, or of the one of this name."""
    import memstore

    answers = []
    for name in [buffer] if buffer is not None else memstore.buffers(db):
        with open_buffer(db, name) as memory:
            answers.append(ask(memory))
    return answers


def table_width(on: Console) -> int | None:
    """Return the characters that a table may take in a row; None without a limit."""
    return on.width if on.is_terminal else None


def picture_width(on: Console) -> int:
    """Return the characters that a picture or a curve may take in a row."""
    return on.width if on.is_terminal else PICTURE_WIDTH


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print standard JSON: numbers that are not finite become null. Without ``indent`` it is one line."""
    click.echo(json.dumps(json_ready(value), indent=indent, allow_nan=False))


def print_unescaped(text: str) -> None:
    """Print data for another program as they are: control characters are not escaped."""
    console().file.write(text)
