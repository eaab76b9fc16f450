"""A database that can be put back to an earlier moment under the feet of whoever has it open."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import create_engine, make_url, text


class Past:
    """The contents of a database at one moment. No connection notices when they come back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._file = Path(str(make_url(url).database)) if url.startswith("sqlite") else None
        if self._file is not None:
            _copied(self._file, self._file.with_suffix(".past"))
        else:
            self._run("CREATE SCHEMA past", *(f"CREATE TABLE past.{t} AS TABLE public.{t}" for t in self._tables()))

    def come_back(self) -> None:
        """The database forgets everything since. This may be called once."""
        if self._file is not None:
            _copied(self._file.with_suffix(".past"), self._file)
            return
        tables = self._tables()
        self._run(
            "SET LOCAL session_replication_role = replica",
            f"TRUNCATE {', '.join(f'public.{table}' for table in tables)}",
            *(f"INSERT INTO public.{t} OVERRIDING SYSTEM VALUE TABLE past.{t}" for t in tables),
            "DROP SCHEMA past CASCADE",
        )

    def _tables(self) -> list[str]:
        engine = create_engine(self._url)
        with engine.connect() as conn:
            tables = conn.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all()
        engine.dispose()
        return list(tables)

    def _run(self, *statements: str) -> None:
        engine = create_engine(self._url)
        with engine.begin() as conn:
            for statement in statements:
                conn.execute(text(statement))
        engine.dispose()


def _copied(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written)
