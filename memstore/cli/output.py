"""Standard output and error of the command: every text arrives in some form, or the command ends without a traceback.

Three things may stand between a text and its reader. The encoding of the stream may lack a character. A similar one, or
an escape, then takes its place. A text from a file may hold control characters that would steer the terminal. They are
escaped. The stream may be closed, full, or a pipe that nobody reads. The command then ends with an exit code for that.
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
"""After Ctrl-C the command has this exit code: 128 + SIGINT."""
EXIT_OUTPUT = 4
"""If standard output cannot be written, the command has this exit code."""
EXIT_PIPE = 141
"""If nobody reads standard output, the command has this exit code: 128 + SIGPIPE, as for ``cat`` and ``git``."""

BLOCKS = "▁▂▃▄▅▆▇█"
"""Curves are made of these characters, from the lowest to the highest."""
_RUN = re.compile(f"[{BLOCKS}]+")
_DIGITS = str.maketrans(BLOCKS, "12345678")
_SIMILAR = {"…": "...", "±": "+-", "▀": "#"}
_SIMILAR |= dict.fromkeys("─━═╌╴╸╺", "-") | dict.fromkeys("│┃║", "|") | dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰┏┓┗┛┡┩╇", "+")
"""Similar characters in ASCII."""

_PIPE_WIDTH = 10_000
"""Tables in a pipe have this width. It is enough for every table, so no digits are cut."""


class OutputFailed(Exception):
    """Standard output cannot be written. The cause is an ``OSError``, or None if it was closed from the start."""


def encodable(text: str, encoding: str) -> str:
    """Return the text with a similar character, or an escape, in place of each character that the encoding lacks.

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
    """Return a bar as ``#`` and a curve as digits."""
    return "#" * len(blocks) if set(blocks) == {BLOCKS[-1]} else blocks.translate(_DIGITS)


class Outlet(io.TextIOBase):
    """A standard stream to which any text can be written.

    Parameters
    ----------
    stream : text stream or None
        None if the stream was closed when the process began.
    needed : bool
        True raises ``OutputFailed`` if a text cannot be written. False drops the text: progress and messages must not
        end the work that they report.
    raw : bool
        True lets escape sequences pass, for code that draws. False escapes them.
    """

    encoding: str = "utf-8"
    errors: str = "strict"

    def __init__(self, stream: TextIO | None, *, needed: bool, raw: bool = False) -> None:
        self._stream = stream
        self._needed = needed
        self._raw = raw
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    @property
    def unescaped(self) -> Outlet:
        """Same stream for code that writes its own escape sequences and has escaped its texts."""
        return Outlet(self._stream, needed=self._needed, raw=True)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return True if the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return the number of the file descriptor."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Write the text, and return its length."""
        if not isinstance(text, str):
            raise TypeError(f"text expected, got {type(text).__name__}")
        shown = encodable(text if self._raw else visible_lines(text), self.encoding)
        if shown:
            self._try(lambda stream: stream.write(shown))
        return len(text)

    def flush(self) -> None:
        """Send the buffered text."""
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
                _discard_buffer(self._stream)
        if self._needed:
            raise OutputFailed from cause


def _discard_buffer(stream: TextIO) -> None:
    """Send the buffered text to the null device: the interpreter flushes it at exit and would report an error."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Put an ``Outlet`` in place of each standard stream. End the process if stdout cannot be written.

    Raises
    ------
    SystemExit
        With ``EXIT_PIPE`` if nobody reads stdout any more, with ``EXIT_OUTPUT`` if it cannot be written.
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
        sys.exit(_report_failure(failed, err))
    except Exception:
        sys.excepthook = _show_bug
        raise
    finally:
        err.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def _buffered(stream: TextIO | None) -> Iterator[TextIO | None]:
    """Give the stream a buffer if it has none (``PYTHONUNBUFFERED``).

    Without a buffer Python loses, silently, the text that a full device did not take.
    """
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


def _report_failure(failed: OutputFailed, err: Outlet) -> int:
    """Return the exit code for this failure. Unless nobody reads a pipe, write a line on stderr first."""
    cause = failed.__cause__
    code = cause.errno if isinstance(cause, OSError) else errno.EBADF
    if code == errno.EPIPE or (os.name == "nt" and code == errno.EINVAL):  # Windows' code for a pipe without a reader
        return EXIT_PIPE
    err.write(f"memstore: cannot write to standard output: {os.strerror(code or errno.EIO)}\n")
    return EXIT_OUTPUT


def _occupy_descriptors() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise a database could get its number, and text that a library prints there would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the system gives it the lowest free number


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
    """Print the traceback of an error that should not have happened, with control characters escaped."""
    if sys.stderr is not None:
        Outlet(sys.stderr, needed=False).write("".join(traceback.format_exception(kind, exc, trace)))


def complain(message: str) -> None:
    """Print one line on stderr."""
    click.echo(f"memstore: {message}", err=True, color=True)


class _VisibleConsole(Console):
    """A console that escapes the control characters of all texts."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, and escape the control characters of each text."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            shown = text if control else visible_lines(text)
            yield segment if shown is text else Segment(shown, style)


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr, as wide as its terminal. Without a terminal, stdout has no right margin.

    Texts are never read as markup.
    """
    stream = sys.stderr if stderr else sys.stdout
    file: Any = stream.unescaped if isinstance(stream, Outlet) else stream
    made = _VisibleConsole(file=file, stderr=stderr, highlight=False, markup=False, emoji=False)
    if not stderr and not made.is_terminal:
        made.width = _PIPE_WIDTH
    return made


class CommandLine(click.Group):
    """A group of commands with safe output, also for errors of usage."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command; end the process unless ``standalone_mode`` is False."""

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
        message = io.StringIO()
        exc.show(file=message)
        # Click's message repeats the words typed, and an address among them may hold a password.
        click.echo(without_secrets(message.getvalue()), nl=False, err=True, color=True)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted; everything committed so far is kept")
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0
