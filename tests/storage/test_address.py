"""Addresses: made absolute once, honoured or refused as a whole, and shown without what is secret."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

import memstore
from memstore.errors import ConfigError, StoreReadOnly, StoreUnavailable
from memstore.storage.address import parse_url, shown_address, shown_url, sqlite_path, without_secrets

SECRET = "hunter2"
NEAR = [
    f"host=db user=u password={SECRET} dbname=x",
    f"dbname=x host = h password = '{SECRET}'",
    f"PGPASSWORD={SECRET} psql",
    f"Driver={{PostgreSQL}};Server=h;Pwd={SECRET}",
    f"postgresql:/u:{SECRET}@h/db",
    f"postgresql//u:{SECRET}@h/db",
    f"postgresql/u:{SECRET}@h/db",
    f"postgresql;//u:{SECRET}@h/db",
    f"postgres:u:{SECRET}@h",
    f"Postgresql://u:{SECRET}@h/db",
    f"POSTGRES://u:{SECRET}@h/db",
    f"postgressql://u:{SECRET}@h/db",
    f"pg://u:{SECRET}@h/db",
    f" postgresql://u:{SECRET}@h/db",
    f"postgresql ://u:{SECRET}@h/db",
    f"jdbc:postgresql://h/db?password={SECRET}",
    f"postgresql+asyncpg://u:{SECRET}@h/db",
    f"postgresql+{SECRET}://u@h/db",
    f"postgresql://u:p@{SECRET}@h/db",
    f"postgresql://u:p@/{SECRET}@h/db",
    f"postgresql://u@h/db?password=p@{SECRET}",
    f"postgresql://u@h/db?password=p&password={SECRET}",
    f"postgresql://u@h:{SECRET}/db",
    f"postgresql://u:{SECRET}/h/db",
    f"u:{SECRET}@h/db",
    f"//u:{SECRET}@h/db",
    f"sqlite://u:{SECRET}@h/db",
    f"sqlite:u:{SECRET}",
    f"mysql://u:{SECRET}@h/db",
    f"://u:{SECRET}@h",
    f"postgresql://u:{SECRET}\0@h/db",
    f"postgresql://u:{SECRET}\ud800@h/db",
]


class Odd:
    """A path that is none."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __fspath__(self) -> str:
        return self.text


@pytest.mark.parametrize("address", NEAR)
def test_near_addresses_are_refused_without_repeating_them(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forms: list[Any] = [address, Odd(address), Path(address), address.encode(errors="replace")]
    for form in forms:
        with pytest.raises(ConfigError) as caught:
            memstore.open(form)
        said = str(caught.value) + repr(caught.value) + "".join(traceback.format_exception(caught.value))
        assert SECRET not in said
        assert len(str(caught.value)) < 400
    with pytest.raises(ConfigError):
        shown_address(address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        *("run.db", "user@home.db", "2026-11-28T10:00.db", "run:7.db", "pg/run.db", "postgres.db", "password.db"),
        *("a?b%20#.db", "dataset=digits/run.db", "C:\\data\\me@home.db"),
        *("./host=db", "./password=x", "./user:word@host.db", "./file:run.db"),
    ],
)
def test_names_of_files_are_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, and the same again from what is shown of them."""
    monkeypatch.chdir(tmp_path)
    url = parse_url(name)
    assert sqlite_path(url) == tmp_path / name
    assert parse_url(Path(name) if name[0] != "." else tmp_path / name) == parse_url(url) == url
    monkeypatch.chdir("/")
    assert parse_url(url) == url == parse_url(shown_url(url))


@pytest.mark.parametrize(
    ("address", "path", "options"),
    [
        ("file:a%20b.db", "a b.db", {}),
        ("file:run.db?mode=rwc&cache=private&nolock=0", "run.db", {}),
        ("file:run.db?mode=ro", "run.db", {"mode": "ro"}),
        ("sqlite:///run.db?mode=ro", "run.db", {"mode": "ro"}),
        ("sqlite:///file:run.db?mode=rw&uri=true", "run.db", {"mode": "rw"}),
        ("sqlite+pysqlite:///run.db?immutable=true", "run.db", {"immutable": "1"}),
        ("sqlite:///run.db?vfs=unix-excl", "run.db", {"vfs": "unix-excl"}),
        ("file:///data/run.db", "/data/run.db", {}),
        ("file://localhost/data/run.db", "/data/run.db", {}),
    ],
)
def test_what_an_address_of_a_file_asks_for_is_passed_on(
    address: str, path: str, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (parse_url(address), parse_url(parse_url(address)), parse_url(shown_url(parse_url(address)))):
        assert sqlite_path(url) == tmp_path / path
        assert {name: value for name, value in url.query.items() if name != "uri"} == options


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("file:run.db?mode=memory", "memory"),
        ("file:", "in-memory"),
        ("sqlite:///?mode=ro", "in-memory"),
        ("file:run.db?mode=wr", "rwc"),
        ("sqlite:///run.db?cache=shared", "cache"),
        ("sqlite:///run.db?nolock=1", "immutable=1"),
        ("sqlite:///run.db?immutable=perhaps", "immutable"),
        ("sqlite:///run.db?timeout=5", "busy_timeout="),
        ("sqlite:///run.db?check_same_thread=false", "check_same_thread"),
        ("sqlite:///run.db?isolation_level=IMMEDIATE", "isolation_level"),
        ("sqlite:///run.db?colour=red", "'colour'"),
        ("sqlite:///file:run.db?uri=false", r"\./"),
        ("file:run.db#there", "%23"),
        ("file://elsewhere/run.db", "machine"),
        ("sqlite://run.db", "three slashes"),
        ("sqlite+aiosqlite:///run.db", "driver"),
        ("FILE:run.db", r"\./"),
    ],
)
def test_what_is_not_honoured_is_refused(
    address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        memstore.open(address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["file:nope.db", "sqlite:///nope.db", "sqlite:///file:nope.db?uri=true", "nope.db"])
def test_nothing_is_created_where_the_address_or_the_call_forbids_it(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreUnavailable, match="does not exist"):
        memstore.open(address, create=False)
    if address != "nope.db":
        for option in ("mode=ro", "mode=rw", "immutable=1"):
            with pytest.raises(StoreUnavailable, match="does not exist"):
                memstore.open(f"{address}{'&' if '?' in address else '?'}{option}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["mode=ro", "immutable=1"])
def test_an_address_that_only_reads_is_opened_so(option: str, path: str) -> None:
    with memstore.open(path, seed=1) as memory:
        memory.extend({"x": [1.0, 2.0]}, loss=1.0)
    with memstore.open(f"sqlite:///{path}?{option}") as reader:
        assert len(reader) == 2 and len(reader.sample(2)) == 2
        with pytest.raises(StoreReadOnly):
            reader.add({"x": 3.0})
    with pytest.raises(StoreReadOnly):
        memstore.open(f"file:{path}?{option}", buffer="another")
    with memstore.open(f"file:{path}?mode=rw", create=False) as memory:
        memory.add({"x": 3.0})
        if option == "immutable=1":  # what is in the log would be left out
            with pytest.raises(StoreUnavailable, match="run.db-wal"):
                memstore.open(f"file:{path}?{option}")


def test_a_relative_path_needs_a_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(ConfigError, match="absolute"):
        memstore.open("run.db")


def test_only_harmless_options_of_a_server_are_shown() -> None:
    address = f"postgresql://u:{SECRET}@h/db?sslmode=require&sslpassword={SECRET}&pasword={SECRET}&options=-chunter2"
    assert SECRET not in shown_address(address) and "sslmode=require" in shown_address(address)
    assert SECRET not in shown_url(make_url(address)) and SECRET not in repr(parse_url(address).set(query={}))
    assert "search_path%3Dreplay" in shown_address("postgresql://u@h/db?options=-csearch_path%3Dreplay")


def test_words_that_were_typed_are_shown_without_passwords() -> None:
    said = f"No such command 'postgresql://u:hun@{SECRET}@h/db' (user=u password={SECRET}, pwd = '{SECRET}')"
    assert SECRET not in without_secrets(said) and "No such command" in without_secrets(said)
    assert without_secrets("Got unexpected extra argument (run.db)") == "Got unexpected extra argument (run.db)"
