"""The file of finished trials: one JSON line for each. It can be read after a kill at any point."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.experiment import Trial
from memstore.errors import ConfigError, InvalidValue


class Results:
    """The finished trials of one experiment, by `Trial`. A trial is on disk when `add` returns.

    Parameters
    ----------
    path : Path
        The file; made if it does not exist. A line that a kill cut off is dropped.
    header : dict
        What all trials of the file have in common; stored as its first line.

    Raises
    ------
    ConfigError
        The file has another header, is not a file of results, or cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.found: dict[Trial, dict[str, Any]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise ConfigError(f"results cannot be written to {path}: {error}") from error
        try:
            self._load(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Append a finished trial.

        Raises
        ------
        InvalidValue
            The result holds a value that JSON has not, such as NaN or infinity. Nothing is written.
        """
        try:
            line = json.dumps({"trial": asdict(trial), "result": dict(result)}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidValue(f"the result of {trial} is not plain finite JSON: {error}") from error
        self._append(line)
        # Kept as a later run will read it, with lists in place of tuples.
        self.found[trial] = json.loads(line)["result"]

    def _append(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        os.fsync(self._file.fileno())

    def _load(self, header: Mapping[str, Any]) -> None:
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            self._file.truncate(sum(len(line) for line in lines[:-1]))
            lines = lines[:-1]
        if not lines:
            self._append(json.dumps(dict(header), allow_nan=False))
            return
        self._refuse_other(_parsed(lines[0], self.path, 1), json.loads(json.dumps(dict(header))))
        for number, line in enumerate(lines[1:], start=2):
            entry = _parsed(line, self.path, number)
            try:
                self.found[Trial(**entry["trial"])] = entry["result"]
            except (KeyError, TypeError) as error:
                raise _damaged(self.path, number) from error

    def _refuse_other(self, stored: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        for name in {**header, **stored}:
            if stored.get(name) != header.get(name):
                raise ConfigError(
                    f"{self.path} holds results of {name} {_shown(stored.get(name))}, this run is of "
                    f"{_shown(header.get(name))}; choose another folder, or delete that file"
                )


def _shown(value: Any) -> str:
    return json.dumps(value).replace('"', "")


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number) from error
    if not isinstance(entry, dict):
        raise _damaged(path, number)
    return entry


def _damaged(path: Path, number: int) -> ConfigError:
    return ConfigError(f"{path}, line {number}, is not of an experiment's results; choose another folder")
