"""Opening: one creator among many, nothing foreign touched, nothing half made."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from memstore import upgrade
from memstore.errors import (
    MemstoreError,
    NotAMemstore,
    SchemaError,
    SchemaTooNew,
    SchemaTooOld,
    StoreCorrupt,
    StoreReadOnly,
    StoreUnavailable,
)
from tests.migrations.helpers import add_revision, create, digest, opened, tables, use_revisions, version

PROCESSES = 8
ROUNDS = 10


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes ``use_revisions``."""
    for name in ("REVISIONS", "HEAD", "_migrations"):
        monkeypatch.setattr(upgrade, name, getattr(upgrade, name))


def sql(path: str | Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def join(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join(120)
        if process.exitcode is None:
            process.kill()
            pytest.fail("a child hung")


# --- many at once ------------------------------------------------------------------------------------------------


def race(barrier: Barrier, paths: list[str], report: Path, scripts: Path | None) -> None:
    if scripts is not None:
        use_revisions(scripts)
    outcomes = []
    for path in paths:
        barrier.wait(60)
        try:
            with opened(path) as database:
                outcome = upgrade._bring_up(database, create=True, upgrade=True, backup=True)
                found = database.in_read(upgrade.schema_version)
            outcomes.append([outcome.before, outcome.after, found])
        except BaseException as exc:
            outcomes.append([repr(exc)])
    report.write_text(json.dumps(outcomes))


def run_race(tmp_path: Path, paths: list[str], scripts: Path | None = None) -> list[tuple[Any, ...]]:
    """For each path, what each process saw."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(PROCESSES)
    reports = [tmp_path / f"report-{number}.json" for number in range(PROCESSES)]
    processes: list[BaseProcess] = [
        spawn.Process(target=race, args=(barrier, paths, report, scripts)) for report in reports
    ]
    for process in processes:
        process.start()
    join(processes)
    return list(zip(*(json.loads(report.read_text()) for report in reports), strict=True))


def test_eight_processes_create_one_memory(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"round-{number}.db") for number in range(ROUNDS)]
    for path in paths[::2]:
        Path(path).touch()  # an empty file and no file are the same to an opener
    reference = tmp_path / "reference.db"
    create(reference)
    for path, outcomes in zip(paths, run_race(tmp_path, paths), strict=True):
        assert sorted(outcomes, key=repr) == [["0001", "0001", "0001"]] * (PROCESSES - 1) + [[None, "0001", "0001"]]
        assert tables(path) == tables(reference)


def test_eight_processes_upgrade_once(tmp_path: Path) -> None:
    scripts = add_revision(tmp_path / "scripts")
    paths = [str(tmp_path / f"round-{number}.db") for number in range(3)]
    for path in paths:
        create(path)
    for path, outcomes in zip(paths, run_race(tmp_path, paths, scripts), strict=True):
        assert sorted(outcomes) == [["0001", "0002", "0002"]] + [["0002", "0002", "0002"]] * (PROCESSES - 1)
        assert len(list(tmp_path.glob(Path(path).name + ".schema-0001*"))) == 1


def test_threads_create_different_memories(tmp_path: Path) -> None:
    """Alembic keeps its context in module globals: without a lock they write into each other's files."""
    paths = [tmp_path / f"{number}.db" for number in range(6)]
    barrier = threading.Barrier(len(paths))
    outcomes: list[object] = []

    def work(path: Path) -> None:
        barrier.wait(30)
        try:
            outcomes.append(create(path))
        except BaseException as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == [True] * len(paths)
    assert all(tables(path) == tables(paths[0]) for path in paths)


def test_threads_create_one_memory(path: str) -> None:
    outcomes: list[object] = []
    with opened(path) as database:
        threads = [
            threading.Thread(target=lambda: outcomes.append(upgrade.ensure_schema(database))) for _number in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(map(str, outcomes)) == ["False"] * 5 + ["True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_migrates_does_not_inherit_its_lock(path: str) -> None:
    with upgrade._alembic_lock:
        child: BaseProcess = multiprocessing.get_context("fork").Process(target=create, args=(path,))
        child.start()
    join([child])
    assert child.exitcode == 0
    assert version(path) == upgrade.HEAD


# --- what is not ours --------------------------------------------------------------------------------------------


def random_bytes(path: Path) -> None:
    path.write_bytes(bytes(range(7, 251)) * 100)


def text(path: Path) -> None:
    path.write_text("loss,domain\n0.5,math\n" * 100)


def other_program(path: Path) -> None:
    sql(path, "CREATE TABLE invoices (id INTEGER PRIMARY KEY)", "INSERT INTO invoices VALUES (1)")


def other_program_in_wal(path: Path) -> None:
    sql(path, "PRAGMA journal_mode = WAL", "CREATE TABLE invoices (id INTEGER PRIMARY KEY)")


def other_program_with_views(path: Path) -> None:
    sql(path, "CREATE VIEW invoices AS SELECT 1 AS id")


def other_program_using_alembic(path: Path) -> None:
    sql(path, "CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('0001')")


def newer(path: Path) -> None:
    create(path)
    sql(path, "UPDATE memstore_version SET version_num = '7777'")


def headless(path: Path) -> None:
    create(path)
    sql(path, "DELETE FROM memstore_version")


REFUSED: list[tuple[Callable[[Path], None], type[MemstoreError], str]] = [
    (random_bytes, NotAMemstore, "not a database"),
    (text, NotAMemstore, "not a database"),
    (other_program, NotAMemstore, "'invoices'"),
    (other_program_in_wal, NotAMemstore, "'invoices'"),
    (other_program_with_views, NotAMemstore, "'invoices'"),
    (other_program_using_alembic, NotAMemstore, "'alembic_version'"),
    (newer, SchemaTooNew, r"'7777'.*pip install -U memstore"),
    (headless, StoreCorrupt, "0 rows"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED, ids=[make.__name__ for make, _error, _text in REFUSED])
@pytest.mark.parametrize("keywords", [{}, {"create": False}, {"upgrade": True}], ids=str)
def test_foreign_files_are_refused_unchanged(
    make: Callable[[Path], None],
    error: type[MemstoreError],
    message: str,
    keywords: dict[str, bool],
    path: str,
    tmp_path: Path,
) -> None:
    make(Path(path))
    before = digest(tmp_path)
    with opened(path) as database, pytest.raises(error, match=message):
        upgrade.ensure_schema(database, **keywords)
    assert digest(tmp_path) == before


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        create(tmp_path)
    assert digest(tmp_path) == {}


def test_a_missing_folder_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="folder"):
        create(tmp_path / "missing" / "run.db")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_created_unless_asked(path: str, tmp_path: Path) -> None:
    with opened(path) as database, pytest.raises(StoreUnavailable, match="does not exist"):
        upgrade.ensure_schema(database, create=False)
    with pytest.raises(StoreUnavailable, match="does not exist"):
        upgrade.upgrade(path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_used_only_when_asked(path: str, tmp_path: Path) -> None:
    Path(path).touch()
    with opened(path) as database:
        with pytest.raises(NotAMemstore, match="empty"):
            upgrade.ensure_schema(database, create=False)
        assert Path(path).stat().st_size == 0
        assert upgrade.ensure_schema(database) is True
        assert upgrade.ensure_schema(database) is False
    assert version(path) == upgrade.HEAD


def test_read_only_files_can_be_read(path: str, tmp_path: Path) -> None:
    Path(path).touch()
    address = f"sqlite:///file:{path}?mode=ro&uri=true"
    with pytest.raises(StoreReadOnly):
        create(address)
    create(path)
    sql(path, "PRAGMA journal_mode = DELETE")  # as a copy made with VACUUM INTO has it
    before = digest(tmp_path)
    assert create(address) is False
    assert digest(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="the vfs of this name")
def test_a_place_without_wal_is_refused_instead_of_waited_for(path: str) -> None:
    with pytest.raises(StoreUnavailable, match="WAL"):
        create(f"sqlite:///file:{path}?vfs=unix-none&uri=true")


def test_a_restored_copy_gets_wal_back(path: str) -> None:
    create(path)
    sql(path, "PRAGMA journal_mode = DELETE")
    create(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_opening_is_silent_and_needs_alembic_only_to_create(path: str) -> None:
    program = (
        "import sys; from tests.migrations.helpers import create; "
        f"made = create({path!r}); assert made == ('alembic' in sys.modules), made; sys.exit(10 + made)"
    )
    for expected in (11, 10):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, cwd=Path(__file__).parents[2], check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (expected, b"", b"")


# --- upgrades ----------------------------------------------------------------------------------------------------


def test_an_older_memory_is_not_upgraded_silently(path: str, tmp_path: Path) -> None:
    create(path)
    before = digest(tmp_path)
    use_revisions(upgrade._migrations())
    with opened(path) as database, pytest.raises(SchemaTooOld, match=f"memstore upgrade sqlite:///{path}"):
        upgrade.ensure_schema(database)
    assert digest(tmp_path) == before


def test_upgrade_keeps_the_data_and_a_copy_of_what_was(path: str, tmp_path: Path) -> None:
    create(path)
    old = tables(path)
    sql(path, "INSERT INTO payload (episode_id, crc32, data) VALUES (1, 2, x'0304')")
    with closing(sqlite3.connect(path)) as writer:  # the last commits are still in the WAL
        writer.execute("INSERT INTO payload (episode_id, crc32, data) VALUES (2, 3, x'0405')")
        writer.commit()
        use_revisions(add_revision(tmp_path / "with space % and: colon"))
        done = upgrade.upgrade(path)
    copy = Path(f"{path}.schema-0001")
    assert done == upgrade.Upgraded("0001", "0002", copy)
    assert version(path) == "0002"
    assert "shade" in tables(path)
    assert version(copy) == "0001"
    assert tables(copy) == old
    for file in (path, copy):
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("SELECT * FROM payload").fetchall() == [(1, 2, b"\3\4"), (2, 3, b"\4\5")]
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert upgrade.upgrade(path) == upgrade.Upgraded("0002", "0002")
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_file()) == ["run.db", "run.db.schema-0001"]


def test_a_copy_never_replaces_another(path: str, tmp_path: Path) -> None:
    create(path)
    Path(f"{path}.schema-0001").write_text("precious")
    use_revisions(add_revision(tmp_path / "scripts"))
    assert upgrade.upgrade(path).backup == Path(f"{path}.schema-0001-2")
    assert Path(f"{path}.schema-0001").read_text() == "precious"


def test_upgrade_without_a_copy(path: str, tmp_path: Path) -> None:
    create(path)
    use_revisions(add_revision(tmp_path / "scripts"))
    assert upgrade.upgrade(path, backup=False) == upgrade.Upgraded("0001", "0002")
    assert digest(tmp_path).keys() == {"run.db"}


def test_a_failing_migration_changes_nothing(path: str, tmp_path: Path) -> None:
    create(path)
    before = digest(tmp_path)
    use_revisions(add_revision(tmp_path / "scripts", end="raise RuntimeError('planted')"))
    with pytest.raises(RuntimeError, match="planted"):
        upgrade.upgrade(path, backup=False)
    assert digest(tmp_path) == before
    fresh = tmp_path / "fresh.db"
    with pytest.raises(RuntimeError, match="planted"):
        create(fresh)
    assert tables(fresh) == {}


def test_a_wrong_set_of_migrations_is_named(path: str, tmp_path: Path) -> None:
    use_revisions(add_revision(tmp_path / "scripts"), ("0001", "0002", "0003"))
    with pytest.raises(SchemaError, match="reinstall memstore"):
        create(path)
    assert tables(path) == {}


# --- killed in the middle ----------------------------------------------------------------------------------------


def die_at(path: str, statement: int, scripts: Path | None) -> None:
    if scripts is not None:
        use_revisions(scripts)
    with opened(path) as database:
        executed = 0

        def count(*_arguments: object) -> None:
            nonlocal executed
            executed += 1
            if executed == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(database.engine, "before_cursor_execute", count)
        upgrade.ensure_schema(database, upgrade=True)


def killed_at_every_statement(prepare: Callable[[int], str], scripts: Path | None, old: str | None) -> int:
    """Kill at the first, second ... statement until one run is through; returns how many were killed."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["tests.migrations.helpers", "alembic.command"])
    reference: dict[str, str] | None = None
    for statement in range(1, 200):
        path = prepare(statement)
        child: BaseProcess = forkserver.Process(target=die_at, args=(path, statement, scripts))
        child.start()
        join([child])
        if child.exitcode == 0:
            assert version(path) == upgrade.HEAD
            return statement - 1
        assert child.exitcode == -signal.SIGKILL
        assert version(path) == old
        with opened(path) as database:
            upgrade.ensure_schema(database, upgrade=True)
        reference = reference or tables(path)
        assert tables(path) == reference
        assert version(path) == upgrade.HEAD
    pytest.fail("never through")


@pytest.mark.torture
def test_killed_while_creating(tmp_path: Path) -> None:
    assert killed_at_every_statement(lambda statement: str(tmp_path / f"{statement}.db"), None, None) > 20


@pytest.mark.torture
def test_killed_while_upgrading(tmp_path: Path) -> None:
    scripts = add_revision(tmp_path / "scripts")
    original = tmp_path / "original.db"
    create(original)
    content = original.read_bytes()
    use_revisions(scripts)

    def prepare(statement: int) -> str:
        path = tmp_path / f"{statement}.db"
        path.write_bytes(content)
        return str(path)

    assert killed_at_every_statement(prepare, scripts, "0001") >= 4


def test_an_error_at_every_statement_changes_nothing(tmp_path: Path) -> None:
    class Planted(Exception):
        pass

    for statement in range(1, 200):
        path = tmp_path / f"{statement}.db"
        with opened(path) as database:
            left = statement

            def fail(*_arguments: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Planted

            event.listen(database.engine, "before_cursor_execute", fail)
            try:
                upgrade.ensure_schema(database)
            except Planted:
                assert tables(path) == {}
                assert upgrade.ensure_schema(database) is True  # through the same pool: no connection was spoilt
            else:
                assert statement > 20
                return
    pytest.fail("never through")
