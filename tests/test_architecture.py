"""The shape of the package: who may import whom, how long a module may be, what it may not use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "memstore"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "printable", "testing", "types", "version"),
    ("values",),
    ("config", "figures", "payload"),
    ("storage",),
    ("buffer",),
    ("sharing",),
    ("episodes",),
    ("queries",),
    ("draws",),
    ("upkeep",),
    ("opening",),
    ("memory",),
    ("memstore",),  # memstore/__init__.py: the public names
    ("learner",),
    ("cli",),  # and __main__.py, which starts it
)
"""The rooms, one tier a row: each imports only from rows above its own. ARCHITECTURE.md says what each is for."""

NARROW: dict[str, set[str]] = {
    "figures": {"errors", "values"},
    "payload": {"errors", "types", "values"},
    "storage": {"config", "errors", "printable", "testing", "types", "values", "version"},
    # The rooms that the public names come from: the package itself is still being imported when the learner is.
    "learner": {"memstore", "config", "draws", "errors", "memory", "opening", "types"},
}
"""Those that may import only these, besides themselves."""

MAX_CODE = 45
"""Lines of code of a function, without its docstring and comments."""

MAX_LINES = 600
LONG = {"memory.py": "the one public class: most of it says what its methods promise"}
"""Files that may be longer, each with the reason."""

LAZY = {
    "alembic": {"storage"},
    "matplotlib": {"figures"},
    "psycopg": set[str](),
    "scipy": set[str](),
    "sklearn": {"learner", "cli"},
}
"""Packages imported only inside functions, and the units whose functions may."""

DRIVERS = {"sqlite3", "psycopg", "apsw"}
DRIVER_USE = {"driver_connection", "dbapi_connection", "raw_connection", "exec_driver_sql", "get_backend_name"}
KNOWS_THE_DATABASE = (Path("storage/address.py"), Path("storage/backends"))
"""The address names it; nothing else may ask which database it talks to."""

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pickletools"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}

RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
MODULES = sorted(PACKAGE.rglob("*.py"))
everywhere = pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))


def in_backends(module: Path) -> bool:
    return module.is_relative_to(PACKAGE / "storage" / "backends")


def unit_of(module: Path) -> str:
    first = module.relative_to(PACKAGE).parts[0]
    if first == "__main__.py":
        return "cli"
    return "memstore" if first == "__init__.py" else first.removesuffix(".py")


def tree_of(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"), str(module))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names imported anywhere in the tree; each name of a ``from`` import with its module in front."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the module's full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_units(tree: ast.AST) -> set[str]:
    found = set()
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "memstore":
            known = len(parts) > 1 and (parts[1] in RANK or (PACKAGE / f"{parts[1]}.py").exists())
            found.add(parts[1] if known and parts[1] != "memstore" else "memstore")
    return found


def names_at_import_time(tree: ast.Module) -> Iterator[str]:
    """Imports outside functions, which run when the module is imported."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(node)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending += ast.iter_child_nodes(node)


ROOMS_OF_TESTS = {"benchmarks", "engine", "experiments", "migrations", "support", "torture"}
"""Folders of tests that stand for no room of the package."""


def test_tests_mirror_the_rooms() -> None:
    """Whoever looks for the tests of a room finds them in the folder of its name."""
    folders = {entry.parent.name for entry in Path(__file__).parent.glob("*/__init__.py")}
    assert folders - ROOMS_OF_TESTS <= set(RANK), "name the folder after a room"


@everywhere
def test_every_module_has_a_layer(module: Path) -> None:
    assert unit_of(module) in RANK, f"give {module.name} a place in LAYERS"


@everywhere
def test_imports_point_upwards(module: Path) -> None:
    unit, tree = unit_of(module), tree_of(module)
    others = imported_units(tree) - {unit}
    downwards = {other for other in others if RANK.get(other, len(LAYERS)) >= RANK[unit]}
    assert downwards == set(), f"{unit} may import only from the rooms above it"
    assert others <= NARROW.get(unit, others), f"{unit} may import only {NARROW.get(unit)}"


def imported_modules(module: Path) -> set[Path]:
    """Files of the package that this one imports, wherever in it."""
    found = set()
    for name in imports(tree_of(module)):
        for end in (len(name.split(".")), len(name.split(".")) - 1):
            path = PACKAGE.parent.joinpath(*name.split(".")[:end])
            if path.with_suffix(".py").exists():
                found.add(path.with_suffix(".py"))
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    """Not even inside functions; type checkers may be told more."""
    waiting = {module: imported_modules(module) - {module} for module in MODULES}
    while free := [module for module, needs in waiting.items() if not needs & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting, sorted(str(module.relative_to(PACKAGE)) for module in waiting)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    code = [line.strip() for line in lines[body[0].lineno - 1 : function.end_lineno]]
    return sum(bool(line) and not line.startswith("#") for line in code)


@everywhere
def test_functions_and_files_are_short(module: Path) -> None:
    lines = module.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert code_lines(node, lines) <= MAX_CODE, f"{node.name}, line {node.lineno}"
    assert len(lines) <= MAX_LINES or str(module.relative_to(PACKAGE)) in LONG


@everywhere
def test_heavy_packages_are_imported_only_where_needed(module: Path) -> None:
    unit, tree = unit_of(module), tree_of(module)
    used = {name.split(".")[0] for name in imports(tree)} & LAZY.keys()
    early = {name.split(".")[0] for name in names_at_import_time(tree)} & LAZY.keys()
    if in_backends(module):  # imported itself only for the database it is for
        used, early = used - {"psycopg"}, early - {"psycopg"}
    assert early == set(), "import it inside the function that needs it"
    assert all(unit in LAZY[package] for package in used)


def test_importing_memstore_is_light() -> None:
    program = (
        "import sys, memstore; heavy = {'alembic', 'sklearn', 'scipy', 'psycopg', 'psycopg2', 'torch'}; "
        "print(*sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.split() == []


@everywhere
def test_only_backends_know_the_database(module: Path) -> None:
    if any(module.is_relative_to(PACKAGE / known) for known in KNOWS_THE_DATABASE):
        return
    tree = tree_of(module)
    assert {name.split(".")[0] for name in imports(tree)} & DRIVERS == set(), "drivers belong in backends/"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            asks = node.attr == "name" and isinstance(node.value, ast.Attribute) and node.value.attr == "dialect"
            assert not asks and node.attr not in DRIVER_USE, f"line {node.lineno}: this belongs in backends/"


@everywhere
def test_nothing_stored_is_ever_executed(module: Path) -> None:
    tree = tree_of(module)
    assert {name.split(".")[0] for name in imports(tree)} & UNSAFE_MODULES == set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in UNSAFE_CALLS, f"line {node.lineno}"
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            loads = (node.func.value.id, node.func.attr) in {("np", "load"), ("numpy", "load")}
            refuses = any(
                word.arg == "allow_pickle" and isinstance(word.value, ast.Constant) and word.value.value is False
                for word in node.keywords
            )
            assert not loads or refuses, f"line {node.lineno}: numpy.load needs allow_pickle=False"


@everywhere
def test_public_names_are_documented(module: Path) -> None:
    tree = tree_of(module)
    assert ast.get_docstring(tree) is not None
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) is not None, f"{node.name}, line {node.lineno}"
