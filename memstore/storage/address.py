"""Addresses of databases. They are parsed, made absolute once, and shown without secrets."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from urllib.request import url2pathname

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from memstore.errors import ConfigError

MAX_ADDRESS_BYTES = 8192
"""An address has at most this many bytes."""

EXPECTED = "expected a path, sqlite:///run.db or postgresql://user@host/database"
"""A message about an address that was not understood ends with this text."""

# An address that matches is not repeated in a message, because it may hold a password.
_LIKE_A_SERVER = re.compile(
    r"""\s*(?:
        (?:jdbc:)?(?:postgres\w*|pg|pgsql|psql|psycopg\w*|cockroach\w*|mysql|mariadb|mssql|sqlserver|oracle|sqlite\w*|file
            |https?)(?:\+\w*)?\s*(?::|//)                       # a scheme without its ://
        |(?:host|hostaddr|port|dbname|database|server|driver|user|username|uid|password|service|passfile|sslmode|options
            |application_name|connect_timeout|client_encoding|target_session_attrs|sslcert|sslkey|sslrootcert)\s*=
        |(?![./\\])(?:.*\W)?(?:\w*password|passwd|pwd)\s*=      # libpq's keywords, ODBC's
        |(?![A-Za-z]:[\\/])[^/\\@\s]*:[^@]*@                    # user:password@host
        |(?:postgres\w*|pg|pgsql|psql)\W.*@
        |//[^/]*@)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_SEARCH_PATH = re.compile(r"-c\s*search_path=[\w\",$ ]+")

_SHOWN_QUERY = frozenset(
    ("host", "hostaddr", "port", "user", "dbname", "service", "sslmode", "application_name", "connect_timeout")
)
"""These options of a PostgreSQL address hold no secret."""

_DRIVER_OPTIONS = frozenset(("isolation_level", "detect_types", "check_same_thread", "cached_statements"))
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_SECRET = re.compile(
    r"""(?P<before>://|\w:)\S*@ | (?P<name>(?:password|passwd|pwd)\s*=\s*)(?:'[^']*'|[^\s&;'"]+)""",
    re.IGNORECASE | re.VERBOSE,
)


def parse_url(target: str | os.PathLike[str] | URL) -> URL:
    """Return the address of a database from a path or a URL. A path becomes absolute.

    Parameters
    ----------
    target : str, path or URL
        ``run.db``, ``/data/run.db``, ``sqlite:///run.db``, ``file:run.db?mode=ro``,
        ``postgresql://user@host/database``. SQLite gets the options ``mode=ro``, ``mode=rw``, ``immutable=1`` and
        ``vfs=``.

    Raises
    ------
    ConfigError
        The text is no address, names an in-memory database or a database that memstore does not know, or has an option
        that memstore does not honour. The message never repeats the address of a server, which may hold a password.
    """
    if isinstance(target, os.PathLike):
        target = os.fspath(target)
    url = target if isinstance(target, URL) else _split(target)
    match url.get_backend_name():
        case "postgres" | "postgresql":
            return _postgres_url(url)
        case "sqlite":
            return _sqlite_url(url)
    raise ConfigError(f"memstore has no backend for this kind of database; {EXPECTED}")


def shown_url(url: URL) -> str:
    """Return the URL for a message: without a password, and without options that may hold one."""
    if url.get_backend_name() == "sqlite":
        options = {name: value for name, value in url.query.items() if name != "uri"}
        return URL.create("sqlite", database=str(sqlite_path(url)), query=options).render_as_string()
    hidden = {name: "***" for name, value in url.query.items() if not _harmless(name, value)}
    return url.set(drivername="postgresql").update_query_dict(hidden).render_as_string(hide_password=True)


def shown_address(address: str) -> str:
    """Return an address that a user typed, without a password.

    A path is returned as it is, and a URL as ``shown_url`` shows it.

    Raises
    ------
    ConfigError
        As for ``parse_url``.
    """
    url = parse_url(address)
    return address if "://" not in address else shown_url(url)


def without_secrets(text: str) -> str:
    """Return the message without any part that looks like a password."""
    return _SECRET.sub(lambda found: f"{found['before']}***@" if found["before"] else f"{found['name']}***", text)


def sqlite_path(url: URL) -> Path | None:
    """Return the file that a SQLite URL names. None for other databases."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    return Path(_file_uri(url.database)[0] if url.database.startswith("file:") else url.database)


def _split(text: Any) -> URL:
    """Split an address into its parts. An error repeats no part, because the address may hold a password."""
    if not isinstance(text, str):
        raise ConfigError(f"the database must be given as a path or URL, got a {type(text).__name__}")
    encoded = text.encode(errors="surrogatepass")
    if not encoded or b"\0" in encoded or len(encoded) > MAX_ADDRESS_BYTES or not _encodable(text):
        raise ConfigError(
            f"the database's address must be 1 to {MAX_ADDRESS_BYTES} bytes of UTF-8 without NUL, "
            f"got {len(encoded)} bytes"
        )
    if text.startswith("file:"):
        return URL.create("sqlite", database=text)
    if "://" not in text:
        if _LIKE_A_SERVER.match(text):
            raise ConfigError(
                "the address looks like that of a database server, written in another way; it is not repeated here, as "
                "it may hold a password. Write postgresql://user:password@host/database; a file of such a name needs "
                "./ in front"
            )
        return URL.create("sqlite", database=text)
    scheme, _, rest = text.partition("://")
    if scheme.startswith("postgres") and rest.count("@") > 1:
        raise ConfigError("the address has more than one @: write %40 for each in the user or the password")
    url = _made(text)
    if url is None:
        raise ConfigError(f"not a database URL; {EXPECTED}")
    return url


def _made(text: str) -> URL | None:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        return None  # the message of this error would repeat the whole text, password included


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _postgres_url(url: URL) -> URL:
    # get_driver_name() is not used, because it looks up the dialect, and "postgres" is no dialect.
    if url.drivername.partition("+")[2] not in ("", "psycopg"):
        raise ConfigError("memstore uses psycopg 3: write postgresql:// with no other driver after a +")
    if "@" in (url.host or ""):
        raise ConfigError("the address has an @ in its host: write %40 for one in the user or the password")
    password = url.query.get("password")
    if password is not None:  # a URL may give the password as an option, and libpq accepts that
        if not isinstance(password, str):
            raise ConfigError("the address gives the password more than once; give it once")
        url = url.difference_update_query(["password"]).set(password=password)
    return url.set(drivername="postgresql+psycopg")


def _harmless(name: str, value: str | tuple[str, ...]) -> bool:
    if name == "options":
        return isinstance(value, str) and _SEARCH_PATH.fullmatch(value) is not None
    return name in _SHOWN_QUERY


def _sqlite_url(url: URL) -> URL:
    """Return the URL with an absolute path, and only the options that change how SQLite works."""
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ConfigError("memstore uses Python's own driver of SQLite: write sqlite:/// without another")
    if url.host or url.username or url.password or url.port:
        raise ConfigError("a SQLite database has no host or user: write sqlite:///run.db (three slashes), or the path")
    database, options = url.database or "", dict[str, Any](url.query)
    if database.startswith("file:"):
        database, inside = _file_uri(database)
        options = {**inside, **options}
    options = _sqlite_options(options)
    if database == "" or ":memory:" in database:
        raise ConfigError("memstore keeps its data: give a file instead of an in-memory SQLite database")
    try:
        path = os.path.abspath(database)  # noqa: PTH100 - SQLAlchemy does the same; the system follows links
    except OSError as exc:
        raise ConfigError("the current folder is gone, so a relative path leads nowhere; give an absolute one") from exc
    if not options:
        return URL.create("sqlite", database=path)
    return URL.create("sqlite", database=Path(path).as_uri(), query={**options, "uri": "true"})


def _file_uri(uri: str) -> tuple[str, dict[str, str]]:
    """Return path and options of a URI in SQLite's own form, https://sqlite.org/uri.html."""
    path, _, query = uri.removeprefix("file:").partition("?")
    if "#" in path + query:
        raise ConfigError("an address that begins with file: may not hold a #; write %23 for one in a name")
    if path.startswith("//"):
        authority, _, rest = path.removeprefix("//").partition("/")
        if authority not in ("", "localhost"):
            raise ConfigError("a file: address names no machine; write file:/data/run.db, or the path alone")
        path = f"/{rest}"
    return url2pathname(path), dict(parse_qsl(query, keep_blank_values=True))


def _sqlite_options(asked: Mapping[str, Any]) -> dict[str, str]:
    """Return the options for SQLite, without those that ask for its defaults."""
    kept: dict[str, str] = {}
    for name, value in asked.items():
        match name, str(value).lower():
            case "mode", "memory":
                raise ConfigError("memstore keeps its data: mode=memory would not; give a file without it")
            case ("mode", "ro" | "rw") | ("immutable", "1" | "true" | "yes" | "on"):
                kept[name] = "1" if name == "immutable" else str(value).lower()
            case "vfs", _:
                kept[name] = str(value)
            case ("mode", "rwc") | ("cache", "private"):
                continue
            case "uri", chosen if chosen in _TRUE:
                continue
            case (("immutable" | "nolock"), chosen) if chosen in _FALSE:
                continue
            case _:
                raise ConfigError(_unsupported(name))
    return kept


def _unsupported(name: str) -> str:
    if name == "timeout":
        return "the address asks for a timeout; write open(..., busy_timeout=seconds) in its place"
    if name in _DRIVER_OPTIONS:
        return f"the address asks for {name}, a setting of the driver that memstore chooses itself; leave it out"
    ways = {
        "mode": "mode may be ro (only read), rw (the file must exist) or rwc (may be created, as without mode)",
        "cache": "memstore relies on SQLite's locks between connections, which cache=shared replaces; leave it out",
        "nolock": "memstore relies on SQLite's locks; leave it out, or write immutable=1 if nobody changes the file",
        "immutable": "immutable may be 1 (nobody changes the file) or 0",
        "uri": "an address that begins with file: is a URI; a file of such a name needs ./ in front",
    }
    unknown = (
        f"memstore does not know the option {name[:40]!r} of a SQLite address; it may have mode, immutable and vfs"
    )
    return ways.get(name, unknown)


def restoring(where: str) -> str:
    """Return the advice after damage, for the end of a sentence."""
    return f"or restore a backup: memstore restore BACKUP {shlex.quote(where)}"
