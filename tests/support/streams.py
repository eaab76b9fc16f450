"""Run the command in a forked process on standard streams of any encoding, closed, full, or without a reader."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from experiments.__main__ import main as experiment
from memstore.cli import main
from memstore.cli.output import CommandLine

EVERY_COMMAND = CommandLine(
    main.name,
    {**main.commands, "experiment": experiment},
    params=main.params,
    epilog=main.epilog,
    context_settings=main.context_settings,
    help=main.help,
    callback=main.callback,
)
"""``memstore``, with ``python -m experiments`` as one command more."""

Kind = Literal["file", "full", "closed", "unread"]


@dataclass(frozen=True, slots=True)
class Streams:
    """What stdout and stderr are, and what else the environment says."""

    stdout: Kind = "file"
    stderr: Kind = "file"
    encoding: str = "utf-8"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one command."""

    code: int
    out: bytes
    err: bytes


def run_all(commands: Sequence[Sequence[str]], streams: Streams, folder: Path) -> list[Outcome]:
    """Run the commands one after the other, as processes of their own would be run, but for the start of Python."""
    answer = folder / "outcomes.json"
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.environ.update(streams.environment)
            outcomes = [_run(command, streams, folder) for command in commands]
            answer.write_text(json.dumps(outcomes), encoding="utf-8")
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, (folder / "err").read_text(errors="replace")
    found: list[list[Any]] = json.loads(answer.read_text(encoding="utf-8"))
    return [Outcome(code, base64.b64decode(out), base64.b64decode(err)) for code, out, err in found]


def _run(command: Sequence[str], streams: Streams, folder: Path) -> tuple[int, str, str]:
    out, err = folder / "out", folder / "err"
    sys.stdout = _opened(1, streams.stdout, streams.encoding, out)
    sys.stderr = _opened(2, streams.stderr, streams.encoding, err)
    code = _as_the_interpreter(list(command))
    return code, base64.b64encode(out.read_bytes()).decode(), base64.b64encode(err.read_bytes()).decode()


def _opened(descriptor: int, kind: Kind, encoding: str, file: Path) -> Any:
    file.write_bytes(b"")
    if kind == "closed":
        with suppress(OSError):
            os.close(descriptor)
        return None
    if kind == "unread":
        reader, target = os.pipe()
        os.close(reader)
    else:
        target = os.open("/dev/full" if kind == "full" else file, os.O_WRONLY | os.O_APPEND)
    if target != descriptor:
        os.dup2(target, descriptor)
        os.close(target)
    # As Python opens them: buffered, and strict unless it is told otherwise.
    raw = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, "backslashreplace" if descriptor == 2 else "strict")


def _as_the_interpreter(command: list[str]) -> int:
    """Run the command, print what it raises, and flush; returns the exit code."""
    code = 1
    try:
        EVERY_COMMAND(command, prog_name="memstore")
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        if sys.stderr is not None:
            traceback.print_exc()
    streams: list[TextIO | None] = [sys.stdout, sys.stderr]
    for stream in streams:
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            code = 120  # what the interpreter makes of it, with "Exception ignored ..."
    return code
