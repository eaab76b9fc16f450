"""The wheel carries what it needs, and nothing of the checkout is needed to use it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from memstore.storage.upgrade import known_revisions

CHECKOUT = Path(__file__).parents[2]


def run(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "COVERAGE_PROCESS_START"}
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist, and the wheel that was built from the sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    # The checkout may hold a folder "build", which would hide the module of that name.
    run("-m", "build", "--no-isolation", "--outdir", folder, CHECKOUT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("memstore-*-py3-none-any.whl")
    return found


def test_the_wheel_is_complete(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    python = {str(file.relative_to(CHECKOUT)) for file in (CHECKOUT / "memstore").rglob("*.py")}
    scripts = [CHECKOUT / "migrations/env.py", CHECKOUT / "migrations/script.py.mako"]
    scripts += (CHECKOUT / "migrations/versions").glob("*.py")
    migrations = {str("memstore" / script.relative_to(CHECKOUT)) for script in scripts}
    assert names >= python | migrations | {"memstore/py.typed"}
    others = {name for name in names - python - migrations if ".dist-info/" not in name}
    assert others == {"memstore/py.typed"}


def test_the_metadata_is_right(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
        (scripts,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        assert "memstore = memstore.cli:main" in archive.read(scripts).decode()
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) >= {"dev", "examples", "postgres", "train"}


def test_the_sdist_has_what_developers_need(built: Path) -> None:
    (found,) = built.glob("memstore-*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        "pyproject.toml",
        "alembic.ini",
        "LICENSE",
        "memstore/py.typed",
        "migrations/env.py",
        "migrations/script.py.mako",
        "migrations/versions/0001_initial.py",
        "tests/migrations/test_packaging.py",
    }
    databases = {name for name in names if name.endswith(".db")}
    assert databases == {f"tests/migrations/assets/v{name}.db" for name in known_revisions()}
    assert not any("__pycache__" in name for name in names)


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    program = tmp_path / "program.py"
    program.write_text(
        "from memstore.storage import upgrade\n"
        "from memstore.storage.address import parse_url\n"
        "from memstore.storage.database import Database\n"
        "database = Database(parse_url('run.db'))\n"
        "print(upgrade.__file__)\n"
        "print(upgrade._migrations())\n"
        "print(upgrade.ensure_schema(database), upgrade.ensure_schema(database))\n"
        "database.close()\n"
    )
    output = run("-W", "error", program, cwd=tmp_path, PYTHONPATH=str(site))
    expected = [str(site / "memstore" / "storage" / "upgrade.py"), str(site / "memstore" / "migrations"), "True False"]
    assert output.splitlines() == expected
    assert (tmp_path / "run.db").exists()
