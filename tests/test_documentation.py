"""The README runs as written; everything public is described."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import memstore
from experiments.experiment import EXPERIMENTS
from memstore.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run_in_order_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in the same folder, as two runs of a script: the second one resumes."""
    monkeypatch.chdir(tmp_path)
    for resumed in (False, True):
        names: dict[str, Any] = {"__name__": "readme"}
        for block in _blocks("python"):
            exec(compile(block, "README.md", "exec"), names)
        assert names["memory"].resumed is resumed
        assert len(names["memory"]) == 512 * (1 + resumed)
        assert names["memory"].check().ok
        assert len(names["replayed"]) == len(names["memory"].history()) == (256 + 20 * 64) * (1 + resumed)
        for value in names.values():
            if isinstance(value, memstore.EpisodicMemory):
                value.close()
        for learner in (names["learner"], names["deep"]):
            learner.memory.close()


def test_first_example_is_five_lines() -> None:
    first = _blocks("python")[0].strip().splitlines()
    assert len([line for line in first if line and not line.startswith("import ")]) == 5


def test_console_commands_of_the_readme_exist() -> None:
    commands = set(re.findall(r"memstore (\w+) (?:--db )?\w+\.db", README))
    assert commands == set(main.commands)
    assert set(re.findall(r"\$ python -m experiments ([\w-]+)", README)) == set(EXPERIMENTS)


def test_pictures_of_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) >= 4
    for picture in pictures:
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_teaches(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output
    for parameter in main.commands[command].params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{command} {parameter.name}"


def test_changelog_names_this_version() -> None:
    assert f"## {memstore.__version__}" in CHANGELOG


def test_every_place_that_architecture_names_exists() -> None:
    """A file or a room by its path, below the checkout or the package; anything else by its name in the code."""
    words = set(re.findall(r"`([\w./]+)`", ARCHITECTURE))
    paths = {word for word in words if "/" in word or word.endswith(".py")}
    assert len(paths) > 40
    assert [word for word in sorted(paths) if not _is_a_place(word)] == []
    defined = _defined()
    assert [
        word for word in sorted(words - paths) if not _is_a_place(word) and word.split(".")[-1] not in defined
    ] == []


def _is_a_place(word: str) -> bool:
    return any((ROOT / folder / (word + ending)).exists() for folder in ("", "memstore") for ending in ("", ".py"))


def _defined() -> set[str]:
    """Names of the classes, functions, and variables of modules and classes, of the package and of the fixtures."""
    names = set()
    for file in [*(ROOT / "memstore").rglob("*.py"), ROOT / "tests" / "conftest.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def test_all_is_complete() -> None:
    """All that ``memstore`` imports from its rooms is exported; ruff keeps the order (RUF022)."""
    imported = {
        alias.asname or alias.name
        for node in ast.parse((ROOT / "memstore" / "__init__.py").read_text()).body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("memstore.")
        for alias in node.names
    }
    assert set(memstore.__all__) == imported
    assert len(memstore.__all__) == len(imported) and (ROOT / "memstore" / "py.typed").exists()
