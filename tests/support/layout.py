"""The fingerprints in ``memstore/storage/backends/layout.py``, of a file that the migrations made.

Written anew after a migration by

    python -m tests.support.layout
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from memstore.storage import upgrade
from memstore.storage.address import parse_url
from memstore.storage.backends import layout
from memstore.storage.database import Database


def made() -> dict[str, str]:
    """Name to fingerprint, in a file without buffers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "empty.db"
        database = Database(parse_url(file))
        upgrade.ensure_schema(database)
        database.close()
        with closing(sqlite3.connect(file)) as connection:
            rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
            return {name: layout.fingerprint(sql) for name, sql in rows if not name.startswith("sqlite_")}


def write() -> None:
    """Put them into the module."""
    layout.REVISION = ""  # nothing is refused meanwhile
    lines = "".join(f'    "{name}": "{digest}",\n' for name, digest in made().items())
    module = Path(layout.__file__)
    text = module.read_text(encoding="utf-8")
    text = re.sub(r'(REVISION = ").*?(")', lambda m: f"{m[1]}{upgrade.HEAD}{m[2]}", text)
    changed = re.sub(r"(LAYOUT: dict\[str, str\] = \{).*?(\})", lambda m: f"{m[1]}\n{lines}{m[2]}", text, flags=re.S)
    module.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    write()
