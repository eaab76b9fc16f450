"""What the commands share: exit codes, errors as one line, the buffer that is meant, the console."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
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
EXIT_USAGE = 2
EXIT_ERROR = 3

EXIT_CODES = (
    "Exit codes: 0 done, 1 check found problems or there is no such episode, 2 wrong usage or settings, "
    "3 the database refused, 4 standard output cannot be written, 130 interrupted, 141 nobody reads the output."
)

PICTURE_WIDTH = 80
"""Characters of what is drawn where no terminal says how wide it is."""

MOST = click.IntRange(1)
"""How many rows at most."""

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
buffer_option = click.option("--buffer", metavar="NAME", help="Which buffer; default: the only one.")
all_buffers_option = click.option("--buffer", metavar="NAME", help="One buffer; default: all of them.")


def reporting(command: Callable[P, None]) -> Callable[P, None]:
    """Turn memstore's errors into one line and an exit code; anything else is a bug and keeps its traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _ending_orderly():
                command(*args, **kwargs)
        except MemstoreError as exc:
            complain(str(exc))
            sys.exit(EXIT_USAGE if isinstance(exc, (ConfigError, InvalidValue)) else EXIT_ERROR)
        except KeyboardInterrupt:
            complain("interrupted; everything committed so far is kept")
            sys.exit(EXIT_INTERRUPTED)

    return run


@contextmanager
def _ending_orderly() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does: what is open is undone, what is half made is removed."""
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield
        return

    def end(number: int, _frame: object) -> None:
        click.echo(f"memstore: ended by {signal.Signals(number).name}; everything committed so far is kept", err=True)
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is signal.SIG_DFL}  # nohup ignores one
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def opened(db: str, buffer: str | None) -> Iterator[EpisodicMemory]:
    """The buffer of this name, or the only one.

    Raises
    ------
    ConfigError
        There is none, or the name is needed to tell which.
    """
    import memstore

    if buffer is None:
        names = memstore.buffers(db)
        if len(names) != 1:
            listed = ", ".join(map(repr, names))
            hint = f"say which with --buffer: {listed}" if names else "memstore.open makes one"
            raise ConfigError(f"{shown_address(db)} holds {len(names)} buffers; {hint}")
        buffer = names[0]
    with memstore.open(db, buffer=buffer, create=False, cache_bytes=0) as memory:
        yield memory


def each_buffer(db: str, buffer: str | None, ask: Callable[[EpisodicMemory], T]) -> list[T]:
    """The answers of the buffer of this name, or of all."""
    import memstore

    answers = []
    for name in [buffer] if buffer is not None else memstore.buffers(db):
        with opened(db, name) as memory:
            answers.append(ask(memory))
    return answers


def table_width(on: Console) -> int | None:
    """Characters for a table, None where nothing limits them."""
    return on.width if on.is_terminal else None


def picture_width(on: Console) -> int:
    """Characters for what fills the width."""
    return on.width if on.is_terminal else PICTURE_WIDTH


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print as JSON that any reader takes: numbers that are not finite as null; in one line without ``indent``."""
    click.echo(json.dumps(json_ready(value), indent=indent, allow_nan=False))


def print_complete(text: str) -> None:
    """Print data for another program: nothing in it is made visible."""
    console().file.write(text)


def print_records(records: Iterable[Any]) -> None:
    """Print dataclasses as a JSON list of objects."""
    print_json([dataclasses.asdict(record) for record in records])
