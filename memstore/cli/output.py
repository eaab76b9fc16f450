"""Standard output and error of the command: every text arrives in some form, or the command ends without a traceback.

Three things may stand between a text and its reader. The stream's encoding lacks a character: something similar, or
an escape, takes its place. The text comes from a file and would steer the terminal: it is made visible. The stream
is closed, full, or a pipe that nobody reads: the command ends with the exit code that says so.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, TextIO

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from memstore.errors import StoreWarning
from memstore.printable import escaped, visible_lines
from memstore.storage.address import without_secrets

EXIT_INTERRUPTED = 130
EXIT_OUTPUT = 4
EXIT_PIPE = 141
"""What a shell reports of ``cat`` and ``git`` when nobody reads their output: 128 + SIGPIPE."""

BLOCKS = "▁▂▃▄▅▆▇█"
_RUN = re.compile(f"[{BLOCKS}]+")
_DIGITS = str.maketrans(BLOCKS, "12345678")
_SIMILAR = {"…": "...", "±": "+-", "▀": "#"}
_SIMILAR |= dict.fromkeys("─━═╌╴╸╺", "-") | dict.fromkeys("│┃║", "|") | dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰┏┓┗┛┡┩╇", "+")

_PIPE_WIDTH = 10_000
"""Wide enough for every table: a pipe must not lose digits to a margin that is not there."""


class OutputFailed(Exception):
    """Standard output takes no more; the cause is an ``OSError``, or None where it was closed from the start."""


def encodable(text: str, encoding: str) -> str:
    """The text with something similar, or an escape, in place of each character that the encoding lacks.

    Curves of blocks become digits, bars become ``#``, lines become ``-``, ``|`` and ``+``.
    """
    if text.isascii():
        return text
    lacking = {character for character in set(text) if not _is_in(character, encoding)}
    if not lacking:
        return text
    if not lacking.isdisjoint(BLOCKS):
        text = _RUN.sub(lambda run: _in_ascii(run[0]), text)
    return text.translate({ord(character): _SIMILAR.get(character) or escaped(character) for character in lacking})


def _is_in(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeError:
        return False
    return True


def _in_ascii(blocks: str) -> str:
    """A bar as ``#``, a curve as digits."""
    return "#" * len(blocks) if set(blocks) == {BLOCKS[-1]} else blocks.translate(_DIGITS)


class Outlet(io.TextIOBase):
    """A standard stream to which any text can be written.

    Parameters
    ----------
    stream : text stream or None
        None where it was closed when the process began.
    needed : bool
        Whether to raise ``OutputFailed`` when a text cannot be written. Progress and messages are given up instead:
        they never end the work that they are about.
    as_it_is : bool
        Whether escape sequences pass, which is for what draws; other text is made visible.
    """

    encoding: str = "utf-8"
    errors: str = "strict"

    def __init__(self, stream: TextIO | None, *, needed: bool, as_it_is: bool = False) -> None:
        self._stream = stream
        self._needed = needed
        self._as_it_is = as_it_is
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    @property
    def drawing(self) -> Outlet:
        """The same stream for what brings its own escape sequences, and has made the text within them visible."""
        return Outlet(self._stream, needed=self._needed, as_it_is=True)

    def writable(self) -> bool:
        """True."""
        return True

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Number of the file descriptor."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Write the text; returns its length."""
        if not isinstance(text, str):
            raise TypeError(f"text expected, got {type(text).__name__}")
        shown = encodable(text if self._as_it_is else visible_lines(text), self.encoding)
        if shown:
            self._try(lambda stream: stream.write(shown))
        return len(text)

    def flush(self) -> None:
        """Send what is buffered."""
        if self._stream is not None:
            self._try(lambda stream: stream.flush())

    def _try(self, act: Callable[[TextIO], Any]) -> None:
        cause = None
        if self._stream is not None:
            try:
                act(self._stream)
                return
            except OSError as exc:
                cause = exc
                _let_go(self._stream)
        if self._needed:
            raise OutputFailed from cause


def _let_go(stream: TextIO) -> None:
    """Let the null device take what is still buffered: the interpreter flushes it at exit, and would complain."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Put an ``Outlet`` in place of each standard stream, and end the process as the state of stdout demands.

    Raises
    ------
    SystemExit
        With ``EXIT_PIPE`` where nobody reads stdout any more, with ``EXIT_OUTPUT`` where it cannot be written.
    """
    _occupy_descriptors()
    before = sys.stdout, sys.stderr
    err = Outlet(sys.stderr, needed=False)
    try:
        with _buffered(sys.stdout) as stream, _warnings_in_one_line():
            out = Outlet(stream, needed=True)
            sys.stdout, sys.stderr = out, err
            try:
                yield
            except SystemExit:
                out.flush()
                raise
            out.flush()
    except OutputFailed as failed:
        sys.exit(_said(failed, err))
    except Exception:
        sys.excepthook = _show_bug
        raise
    finally:
        err.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def _buffered(stream: TextIO | None) -> Iterator[TextIO | None]:
    """The stream with a buffer: without one (``PYTHONUNBUFFERED``) Python forgets what a full device did not take."""
    raw = getattr(stream, "buffer", None)
    if stream is None or not isinstance(raw, io.RawIOBase):
        yield stream
        return
    buffered = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, write_through=True)
    try:
        yield buffered
    finally:
        with suppress(OSError):
            buffered.detach().detach()


def _said(failed: OutputFailed, err: Outlet) -> int:
    """The exit code for this failure, after a line on stderr unless it is a pipe's."""
    cause = failed.__cause__
    code = cause.errno if isinstance(cause, OSError) else errno.EBADF
    if code == errno.EPIPE or (os.name == "nt" and code == errno.EINVAL):  # what Windows calls a pipe without a reader
        return EXIT_PIPE
    err.write(f"memstore: cannot write to standard output: {os.strerror(code or errno.EIO)}\n")
    return EXIT_OUTPUT


def _occupy_descriptors() -> None:
    """Open the null device for each standard stream that is closed.

    A database must not get its number: what a library prints there would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, StoreWarning):
                complain(f"warning: {message}")
            else:
                others(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _show_bug(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that should not have been, the names in it visible."""
    if sys.stderr is not None:
        Outlet(sys.stderr, needed=False).write("".join(traceback.format_exception(kind, exc, trace)))


def complain(message: str) -> None:
    """Print one line on stderr."""
    click.echo(f"memstore: {message}", err=True, color=True)


class _VisibleConsole(Console):
    """A console that shows the control characters of texts, wherever the texts come from."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich renders it, each text made visible."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            shown = text if control else visible_lines(text)
            yield segment if shown is text else Segment(shown, style)


def console(*, stderr: bool = False) -> Console:
    """On stdout or stderr: as wide as its terminal; stdout has no right margin elsewhere. Texts are never markup."""
    stream = sys.stderr if stderr else sys.stdout
    file: Any = stream.drawing if isinstance(stream, Outlet) else stream
    made = _VisibleConsole(file=file, stderr=stderr, highlight=False, markup=False, emoji=False)
    if not stderr and not made.is_terminal:
        made.width = _PIPE_WIDTH
    return made


class CommandLine(click.Group):
    """A group of commands whose output is safe, errors of usage included."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command; ends the process unless ``standalone_mode`` is off."""

        def run() -> Any:
            return super(CommandLine, self).main(args, prog_name, complete_var, standalone_mode=False, **extra)

        if not standalone_mode:
            return run()
        with safe_streams():
            sys.exit(_exit_code(run))


def _exit_code(run: Callable[[], Any]) -> int:
    try:
        code = run()
    except click.ClickException as exc:
        said = io.StringIO()
        exc.show(file=said)
        # What click says of wrong usage repeats the words typed: an address there may hold a password.
        click.echo(without_secrets(said.getvalue()), nl=False, err=True, color=True)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted; everything committed so far is kept")
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0
