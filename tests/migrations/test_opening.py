"""Opening: one creator among many, nothing foreign touched, nothing half made."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
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

import numpy as np
import pytest
from sqlalchemy import event, make_url

import memstore
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
from memstore.learner import run_training, training_config
from memstore.storage import upgrade
from tests.migrations.helpers import (
    HEAD,
    NEXT,
    Another,
    add_revision,
    content,
    create,
    digest,
    opened,
    sql,
    structure,
    tables,
    use_revisions,
    version,
)
from tests.support.helpers import FRESH, postgres_only, sqlite_only
from tests.support.postgres import PostgresServer

PROCESSES = 8
ROUNDS = 10


def join(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join(120)
        if process.exitcode is None:
            process.kill()
            pytest.fail("a child hung")


# --- many at once ------------------------------------------------------------------------------------------------


def race(barrier: Barrier, targets: list[str], report: Path, scripts: Path | None) -> None:
    if scripts is not None:
        use_revisions(scripts)
    outcomes = []
    for target in targets:
        barrier.wait(60)
        try:
            with opened(target) as database:
                outcome = upgrade._bring_up(database, create=True, upgrade=True, backup=True)
            outcomes.append([outcome.before, outcome.after, version(target)])
        except BaseException as exc:
            outcomes.append([repr(exc)])
    report.write_text(json.dumps(outcomes))


def run_race(tmp_path: Path, targets: list[str], scripts: Path | None = None) -> list[tuple[Any, ...]]:
    """For each database, what each process saw."""
    spawn = FRESH
    barrier = spawn.Barrier(PROCESSES)
    reports = [tmp_path / f"report-{number}.json" for number in range(PROCESSES)]
    processes: list[BaseProcess] = [
        spawn.Process(target=race, args=(barrier, targets, report, scripts)) for report in reports
    ]
    for process in processes:
        process.start()
    join(processes)
    return list(zip(*(json.loads(report.read_text()) for report in reports), strict=True))


def test_eight_processes_create_one_memory(tmp_path: Path, url: str, another: Another) -> None:
    create(url)
    targets = [another() for _round in range(ROUNDS)]
    for target in targets[::2]:
        if target.startswith("sqlite"):
            Path(str(make_url(target).database)).touch()  # an empty file and no file are the same to an opener
    for target, outcomes in zip(targets, run_race(tmp_path, targets), strict=True):
        assert sorted(outcomes, key=repr) == [[HEAD, HEAD, HEAD]] * (PROCESSES - 1) + [[None, HEAD, HEAD]]
        assert tables(target) == tables(url)


def test_eight_processes_upgrade_once(tmp_path: Path, another: Another) -> None:
    scripts = add_revision(tmp_path / "scripts")
    targets = [another() for _round in range(3)]
    for target in targets:
        create(target)
    for target, outcomes in zip(targets, run_race(tmp_path, targets, scripts), strict=True):
        assert sorted(outcomes) == [[HEAD, NEXT, NEXT]] + [[NEXT, NEXT, NEXT]] * (PROCESSES - 1)
        if target.startswith("sqlite"):
            assert len(list(tmp_path.glob(f"{Path(target).name}.schema-{HEAD}*"))) == 1


def test_threads_create_different_memories(another: Another) -> None:
    """Alembic keeps its context in module globals: without a lock they write into each other's databases."""
    targets = [another() for _thread in range(6)]
    barrier = threading.Barrier(len(targets))
    outcomes: list[object] = []

    def work(target: str) -> None:
        barrier.wait(30)
        try:
            outcomes.append(create(target))
        except BaseException as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=work, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == [True] * len(targets)
    assert all(tables(target) == tables(targets[0]) for target in targets)


def test_threads_create_one_memory(url: str) -> None:
    outcomes: list[object] = []
    with opened(url) as database:
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
def test_a_fork_while_another_thread_migrates_does_not_inherit_its_lock(url: str) -> None:
    with upgrade._alembic_lock:
        child: BaseProcess = multiprocessing.get_context("fork").Process(target=create, args=(url,))
        child.start()
    join([child])
    assert child.exitcode == 0
    assert version(url) == upgrade.HEAD


# --- what is not ours --------------------------------------------------------------------------------------------


def random_bytes(path: Path) -> None:
    path.write_bytes(bytes(range(7, 251)) * 100)


def text(path: Path) -> None:
    path.write_text("loss,domain\n0.5,math\n" * 100)


def other_program(path: Path) -> None:
    sql(path, "CREATE TABLE invoices (id INTEGER PRIMARY KEY)", "INSERT INTO invoices VALUES (1)")


def other_program_in_wal(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE invoices (id INTEGER PRIMARY KEY)")


def other_program_with_views(path: Path) -> None:
    sql(path, "CREATE VIEW invoices AS SELECT 1 AS id")


def other_program_using_alembic(path: Path) -> None:
    sql(path, "CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('0001')")


def newer(path: str | Path) -> None:
    create(path)
    sql(path, "UPDATE memstore_version SET version_num = '7777'")


def headless(path: str | Path) -> None:
    create(path)
    sql(path, "DELETE FROM memstore_version")


REFUSED: list[tuple[Callable[[Any], None], type[MemstoreError], str]] = [
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
    make: Callable[[Any], None],
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


LIKE_OURS: dict[str, tuple[str, type[MemstoreError]]] = {
    "table buffer": ("CREATE TABLE buffer (id int8 PRIMARY KEY, name text)", NotAMemstore),
    "table episode": ("CREATE TABLE episode (id int8)", NotAMemstore),
    "view": ("CREATE VIEW payload AS SELECT 1 AS id", NotAMemstore),
    "materialized view": ("CREATE MATERIALIZED VIEW checkpoint AS SELECT 1 AS id", NotAMemstore),
    # Rarer things are met while the tables are made, which is then undone; who makes none sees none.
    "sequence": ("CREATE SEQUENCE domain", StoreUnavailable),
    "view like a view": ("CREATE VIEW v_history AS SELECT 1 AS id", StoreUnavailable),
    "index": ("CREATE INDEX ix_episode_buffer_id_timestamp ON invoices (id)", StoreUnavailable),
}


@postgres_only
@pytest.mark.parametrize("keywords", [{}, {"create": False}, {"upgrade": True}], ids=str)
@pytest.mark.parametrize("kind", LIKE_OURS)
def test_what_is_named_like_ours_is_refused_unchanged(url: str, kind: str, keywords: dict[str, bool]) -> None:
    statement, without_creating = LIKE_OURS[kind]
    error = NotAMemstore if keywords.get("create", True) else without_creating
    sql(url, "CREATE TABLE invoices (id int8 PRIMARY KEY)", statement, "INSERT INTO invoices VALUES (1)")
    before = content(url)
    with opened(url) as database, pytest.raises(error):
        upgrade.ensure_schema(database, **keywords)
    assert content(url) == before


@postgres_only
def test_the_message_names_what_is_in_the_way(url: str) -> None:
    sql(url, "CREATE TABLE buffer (id int8)")
    with pytest.raises(NotAMemstore, match="'buffer'.*search_path"):
        create(url)


@postgres_only
def test_other_programs_keep_their_tables_beside_ours(url: str) -> None:
    """Alembic's own version table included, which is not ours."""
    foreign = ["CREATE TABLE invoices (id int8)", "CREATE TABLE alembic_version (version_num text)"]
    foreign += ["CREATE VIEW paid AS SELECT * FROM invoices", "INSERT INTO alembic_version VALUES ('0001')"]
    sql(url, *foreign)
    before = tables(url)
    with opened(url) as database:
        with pytest.raises(StoreUnavailable, match="no memstore"):
            upgrade.ensure_schema(database, create=False)
        assert tables(url) == before
        assert upgrade.ensure_schema(database) is True
        assert upgrade.ensure_schema(database) is False
    after = tables(url)
    assert {name: after[name] for name in before} == before
    assert sql(url, "SELECT * FROM alembic_version") == [("0001",)]


@postgres_only
def test_schemas_of_one_database_are_memories_of_their_own(url: str, tmp_path: Path) -> None:
    """By way of ``search_path``; what is in another schema is not in the way, nor changed, nor upgraded."""
    sql(url, "CREATE TABLE buffer (id int8)", "CREATE SCHEMA one", "CREATE SCHEMA two")
    one, two = (url + f"&options=-csearch_path%3D{name}" for name in ("one", "two"))
    assert create(one) is True and create(one) is False
    assert version(one) == HEAD and version(two) is None
    assert create(two) is True
    assert tables(one) == {name: text.replace("two.", "one.") for name, text in tables(two).items()}
    use_revisions(add_revision(tmp_path / "scripts"))
    assert upgrade.upgrade(one).after == NEXT
    assert version(one) == NEXT and version(two) == HEAD
    assert list(tables(url)) == ["buffer"]


@postgres_only
def test_another_encoding_is_refused(postgres_server: PostgresServer, url: str) -> None:
    name = f"{make_url(url).database}_latin"
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        with pytest.raises(StoreUnavailable, match="UTF8"):
            create(postgres_server.url(name))
        assert tables(postgres_server.url(name)) == {}
    finally:
        postgres_server.drop_database(name)


@postgres_only
@pytest.mark.parametrize(
    ("right", "error"), [("CREATE", StoreReadOnly), ("ALL", MemstoreError)], ids=["no CREATE", "no rights"]
)
def test_a_user_without_rights_changes_nothing(
    postgres_server: PostgresServer, url: str, right: str, error: type[MemstoreError]
) -> None:
    name = f"stranger_{make_url(url).database}"
    stranger = make_url(url).set(username=name).render_as_string(hide_password=False)
    sql(url, f"REVOKE {right} ON SCHEMA public FROM public", f"CREATE ROLE {name} LOGIN")
    try:
        with pytest.raises(error):
            create(stranger)
        assert tables(url) == {}
        create(url)
        with pytest.raises(error):  # the tables are there, but not for this user
            create(stranger)
    finally:
        postgres_server.execute(f"DROP ROLE {name}")
    assert version(url) == HEAD


@postgres_only
@pytest.mark.parametrize(("make", "error", "message"), [*REFUSED[-2:]], ids=["newer", "headless"])
@pytest.mark.parametrize("keywords", [{}, {"create": False}, {"upgrade": True}], ids=str)
def test_tables_of_another_version_are_refused_unchanged(
    make: Callable[[Any], None], error: type[MemstoreError], message: str, keywords: dict[str, bool], url: str
) -> None:
    make(url)
    before = content(url)
    with opened(url) as database, pytest.raises(error, match=message):
        upgrade.ensure_schema(database, **keywords)
    assert content(url) == before


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
        with pytest.raises(StoreUnavailable, match="empty"):
            upgrade.ensure_schema(database, create=False)
        assert Path(path).stat().st_size == 0
        assert upgrade.ensure_schema(database) is True
        assert upgrade.ensure_schema(database) is False
    assert version(path) == upgrade.HEAD


def only_a_header(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    assert Path(path).stat().st_size == 4096


def an_old_log(path: str) -> None:
    with closing(sqlite3.connect(f"{path}.made")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE gone (id INTEGER)")
        connection.execute("DROP TABLE gone")
        for suffix in ("", "-wal"):
            Path(f"{path}{suffix}").write_bytes(Path(f"{path}.made{suffix}").read_bytes())
    assert Path(f"{path}-wal").stat().st_size > 0


def a_hot_journal(path: str) -> None:
    sql(f"{path}.made", "CREATE TABLE gone (id INTEGER)", "DROP TABLE gone")
    with closing(sqlite3.connect(f"{path}.made", isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE half (data BLOB)")
        connection.executemany("INSERT INTO half VALUES (zeroblob(4000))", [()] * 100)
        for suffix in ("", "-journal"):
            Path(f"{path}{suffix}").write_bytes(Path(f"{path}.made{suffix}").read_bytes())
    assert Path(path).stat().st_size > 50_000 and Path(f"{path}-journal").stat().st_size > 0


LEFTOVERS = [lambda path: Path(path).touch(), only_a_header, an_old_log, a_hot_journal]


@pytest.mark.parametrize("leave", LEFTOVERS, ids=["no bytes", "header", "log", "journal"])
def test_what_a_killed_creation_leaves_is_filled(leave: Callable[[str], None], path: str) -> None:
    """Refused only where nothing may be created, as what is missing and not as what is foreign."""
    leave(path)
    with pytest.raises(StoreUnavailable, match="empty"):
        memstore.open(path, create=False)
    with pytest.raises(StoreUnavailable, match="empty"):
        memstore.buffers(path)
    dataset = f"{path}.npz"
    np.savez(dataset, x=np.eye(40), y=np.arange(40) % 2)
    assert run_training(path, training_config(capacity=20), dataset=dataset).steps == 3
    with memstore.open(path, create=False) as memory:
        assert memory.check().ok


def without_wal(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def test_read_only_files_can_be_read(path: str, tmp_path: Path) -> None:
    Path(path).touch()
    address = f"sqlite:///file:{path}?mode=ro&uri=true"
    with pytest.raises(StoreReadOnly):
        create(address)
    create(path)
    without_wal(path)  # as a copy made with VACUUM INTO is
    before = digest(tmp_path)
    assert create(address) is False
    assert digest(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="the vfs of this name")
def test_a_place_without_wal_is_refused_instead_of_waited_for(path: str) -> None:
    with pytest.raises(StoreUnavailable, match="WAL"):
        create(f"sqlite:///file:{path}?vfs=unix-none&uri=true")


def test_a_restored_copy_gets_wal_back(path: str) -> None:
    create(path)
    without_wal(path)
    create(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_opening_is_silent_and_needs_alembic_only_to_create(url: str) -> None:
    program = (
        "import sys; from tests.migrations.helpers import create; "
        f"made = create({url!r}); assert made == ('alembic' in sys.modules), made; sys.exit(10 + made)"
    )
    for expected in (11, 10):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, cwd=Path(__file__).parents[2], check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (expected, b"", b"")


# --- upgrades ----------------------------------------------------------------------------------------------------


def test_an_older_memory_is_not_upgraded_silently(url: str) -> None:
    create(url)
    before = content(url)
    use_revisions(upgrade._migrations())
    with (
        opened(url) as database,
        pytest.raises(SchemaTooOld, match="memstore upgrade .*" + re.escape(str(make_url(url).database))),
    ):
        upgrade.ensure_schema(database)
    assert content(url) == before


KEPT = [(1, 2, b"\3\4"), (2, 3, b"\4\5")]


def test_upgrade_keeps_the_data(url: str, tmp_path: Path) -> None:
    create(url)
    payload = "INSERT INTO payload (episode_id, crc32, data) VALUES (1, 2, {}), (2, 3, {})"
    literals = ("x'0304'", "x'0405'") if url.startswith("sqlite") else (r"'\x0304'", r"'\x0405'")
    sql(url, payload.format(*literals))
    use_revisions(add_revision(tmp_path / "with space % and: colon"))
    done = upgrade.upgrade(url)
    assert (done.before, done.after) == (HEAD, NEXT)
    assert version(url) == NEXT and "shade" in tables(url)
    assert sql(url, "SELECT episode_id, crc32, data FROM payload ORDER BY episode_id") == KEPT
    assert upgrade.upgrade(url) == upgrade.Upgraded(NEXT, NEXT)


@sqlite_only
def test_upgrade_keeps_a_copy_of_what_was(url: str, path: str, tmp_path: Path) -> None:
    create(path)
    old = tables(path)
    sql(path, "INSERT INTO payload (episode_id, crc32, data) VALUES (1, 2, x'0304')")
    with closing(sqlite3.connect(path)) as writer:  # the last commits are still in the WAL
        writer.execute("INSERT INTO payload (episode_id, crc32, data) VALUES (2, 3, x'0405')")
        writer.commit()
        use_revisions(add_revision(tmp_path / "scripts"))
        done = upgrade.upgrade(path)
    copy = Path(f"{path}.schema-{HEAD}")
    assert done == upgrade.Upgraded(HEAD, NEXT, copy)
    assert version(copy) == HEAD
    assert tables(copy) == old
    for file in (path, copy):
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("SELECT * FROM payload").fetchall() == KEPT
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert upgrade.upgrade(path) == upgrade.Upgraded(NEXT, NEXT)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_file()) == ["run.db", copy.name]


def test_a_copy_never_replaces_another(path: str, tmp_path: Path) -> None:
    create(path)
    Path(f"{path}.schema-{HEAD}").write_text("precious")
    use_revisions(add_revision(tmp_path / "scripts"))
    assert upgrade.upgrade(path).backup == Path(f"{path}.schema-{HEAD}-2")
    assert Path(f"{path}.schema-{HEAD}").read_text() == "precious"


def test_upgrade_without_a_copy(path: str, tmp_path: Path) -> None:
    create(path)
    use_revisions(add_revision(tmp_path / "scripts"))
    assert upgrade.upgrade(path, backup=False) == upgrade.Upgraded(HEAD, NEXT)
    assert digest(tmp_path).keys() == {"run.db"}


def test_upgrade_step_by_step_ends_where_creation_does(url: str, another: Another) -> None:
    """Every revision of the past, with rows in its tables, leads to the tables of today."""
    create(url)
    for revision in upgrade.REVISIONS[:-1]:
        old = another()
        with pytest.MonkeyPatch.context() as past:
            past.setattr(upgrade, "REVISIONS", (revision,))
            past.setattr(upgrade, "HEAD", revision)
            create(old)
        with pytest.raises(SchemaTooOld):
            create(old)
        sql(old, "INSERT INTO episode_tag (buffer_id, tag, episode_id, ordinal) VALUES (1, 't', 1, 0)")
        done = upgrade.upgrade(old)
        assert (done.before, done.after) == (revision, HEAD)
        assert structure(old) == structure(url)
        assert sql(old, "SELECT tag FROM episode_tag") == [("t",)]


def test_a_failing_migration_changes_nothing(url: str, another: Another, tmp_path: Path) -> None:
    create(url)
    before = content(url)
    use_revisions(add_revision(tmp_path / "scripts", end="raise RuntimeError('planted')"))
    with pytest.raises(RuntimeError, match="planted"):
        upgrade.upgrade(url, backup=False)
    assert content(url) == before
    fresh = another()
    with pytest.raises(RuntimeError, match="planted"):
        create(fresh)
    assert tables(fresh) == {}


def test_a_wrong_set_of_migrations_is_named(url: str, tmp_path: Path) -> None:
    use_revisions(add_revision(tmp_path / "scripts"), "beyond")
    with pytest.raises(SchemaError, match="reinstall memstore"):
        create(url)
    assert tables(url) == {}


# --- killed in the middle ----------------------------------------------------------------------------------------


def die_at(target: str, statement: int, scripts: Path | None) -> None:
    if scripts is not None:
        use_revisions(scripts)
    with opened(target) as database:
        executed = 0

        def count(*_arguments: object) -> None:
            nonlocal executed
            executed += 1
            if executed == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(database.engine, "before_cursor_execute", count)
        upgrade.ensure_schema(database, upgrade=True)


STRIDE = 1 if os.environ.get("MEMSTORE_TORTURE") == "full" else 4
"""Of the statements of a creation, every so-manyth is died at."""


def killed_at_every_statement(prepare: Another, scripts: Path | None, old: str | None, stride: int = 1) -> int:
    """Kill at the first, second ... statement until one run is through; returns how many there were."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["tests.migrations.helpers", "alembic.command"])
    reference: dict[str, str] | None = None
    for statement in range(1, 400, stride):
        target = prepare()
        child: BaseProcess = forkserver.Process(target=die_at, args=(target, statement, scripts))
        child.start()
        join([child])
        if child.exitcode == 0:
            assert version(target) == upgrade.HEAD
            return statement - 1
        assert child.exitcode == -signal.SIGKILL
        assert version(target) == old
        with opened(target) as database:
            upgrade.ensure_schema(database, upgrade=True)
        reference = reference or tables(target)
        assert tables(target) == reference
        assert version(target) == upgrade.HEAD
    pytest.fail("never through")


@pytest.mark.torture
def test_killed_while_creating(another: Another) -> None:
    assert killed_at_every_statement(another, None, None, STRIDE) > 20


@pytest.mark.torture
def test_killed_while_upgrading(another: Another, tmp_path: Path) -> None:
    scripts = add_revision(tmp_path / "scripts")

    def prepare() -> str:
        target = another()
        with pytest.MonkeyPatch.context() as past:
            past.setattr(upgrade, "REVISIONS", upgrade.REVISIONS[:-1])
            past.setattr(upgrade, "HEAD", HEAD)
            create(target)
        return target

    use_revisions(scripts)
    assert killed_at_every_statement(prepare, scripts, HEAD) >= 4


def test_an_error_at_every_statement_changes_nothing(another: Another) -> None:
    class Planted(Exception):
        pass

    for statement in range(1, 400, STRIDE):
        target = another()
        with opened(target) as database:
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
                assert tables(target) == {}
                assert upgrade.ensure_schema(database) is True  # through the same pool: no connection was spoilt
            else:
                assert statement > 20
                return
    pytest.fail("never through")
