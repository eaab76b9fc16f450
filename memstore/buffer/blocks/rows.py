"""Blocks in the database: heads are read, contents fetched by name, and rows written where a copy has changed.

A function here takes a connection and never commits. The caller holds the buffer's lock to write, and reads in one
snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from sqlalchemy import Connection, select

from memstore.buffer.blocks.copy import CHUNK, Copy, Fetch
from memstore.buffer.blocks.heads import (
    HEAD,
    MAX_DOMAIN,
    Directory,
    Heads,
    KeyOf,
    fingerprint,
    head_rows,
    new_stamp,
    own,
)
from memstore.buffer.blocks.pages import Pages
from memstore.buffer.blocks.slots import NO_ID, SLOTS, Flags, Floats, Ints, Slots, among, distinct, sealed, unsealed
from memstore.buffer.blocks.weights import UNIT, Law
from memstore.errors import StoreCorrupt
from memstore.storage import checksums, stored
from memstore.storage.backends import Backend
from memstore.storage.schema import block, episode, first_id, id_range, of_buffer, replay_metadata

T = TypeVar("T")

NUMBERS = {
    "id": "name",
    "domain_id": "domain",
    "first_id": "first",
    "last_id": "last",
    "unit": "unit",
    "eviction_key": "key",
    "put": "put",
    "live": "live",
    "unmeasured": "gaps",
}
"""Columns of whole numbers, and what a head calls them."""

REALS = {"least_loss": "least", "largest_loss": "largest", "mean_loss": "mean", "weight_sum": "sum"}
"""Columns of other numbers, and what a head calls them."""

COLUMNS = (*NUMBERS, *REALS, "buffer_id", "revision", "token", "checksum")

ABSENT = {"first_id": NO_ID, "last_id": -1, "eviction_key": NO_ID, "least_loss": np.inf, "largest_loss": -np.inf}
"""A head has these values if its row has NULL."""


class Write(NamedTuple):
    """The numbers of a write that stores blocks.

    Attributes
    ----------
    revision : int
        The revision of the buffer's row.
    token : int
        A random number of 64 bits with a sign, not 0.
    """

    revision: int
    token: int


ALL_BITS = 2**64 - 1
"""This mask gives a token with a sign the same bits without a sign."""

PAGE = 16384
"""So many rows of the tables are read at a time."""

LARGEST_UNIT = 2**17
"""Every unit is below this. With alpha 50 units reach 51,200 and -53,760."""

LARGEST_SUM = 2.0**264
"""Every sum is below this: it is of 80 weights below ``2 ** 256``. The least sum above zero is ``2 ** -256``."""


def read_heads(conn: Connection, backend: Backend, buffer_id: int, *, after: int = -1) -> Heads:
    """Return the heads of a buffer that were written after this revision, in the order of their names.

    Raises
    ------
    StoreCorrupt
        One does not match its checksum, or cannot be.
    """
    query = select(*(block.c[name] for name in COLUMNS)).order_by(block.c.id)
    if after < 0:
        query = query.where(block.c.id.between(*id_range(buffer_id)))
    else:
        query = query.where(block.c.buffer_id == buffer_id, block.c.revision > after)
    return _heads(buffer_id, backend.fetch(conn, query))


def fetching(conn: Connection, backend: Backend) -> Fetch:
    """Return a way to read contents in the snapshot of this connection."""

    def fetch(heads: Heads) -> list[bytes]:
        names: Ints = heads["name"]
        rows = dict(backend.select(conn, block, ("id", "data"), "id", names.tolist()))
        missing = [name for name in names.tolist() if name not in rows]
        if missing:
            raise stored.damaged(f"block {missing[0]}", "was read a moment ago, and is gone")
        # By the tokens of the heads: a content of another moment than its head is not taken for that of this one.
        tokens = heads["token"].astype(np.uint64).tolist()
        return unsealed([rows[name] for name in names.tolist()], names, heads["domain"], tokens)

    return fetch


@dataclass(frozen=True, slots=True)
class Page:
    """Some episodes, as the tables describe them: their slots, and the numbers of their domains within the buffer."""

    slots: Slots
    domains: Ints

    def __len__(self) -> int:
        return len(self.slots)

    def appended_to(self, copy: Copy) -> Copy:
        """Return the copy with these episodes."""
        s = self.slots
        return copy.appended(s.ids, self.domains, s.loss, s.count, s.event, s.lowest, s.at)


def table_pages(conn: Connection, backend: Backend, buffer_id: int) -> Iterator[Page]:
    """Yield the episodes as the replay metadata describe them, in id order, ``PAGE`` at a time."""
    m = replay_metadata.c
    query = (
        select(
            *(m.episode_id, episode.c.domain_id, m.loss, m.replay_count, m.last_event_id),
            *(m.lowest_loss, m.last_replayed_at),
        )
        .select_from(replay_metadata.outerjoin(episode, episode.c.id == m.episode_id))
        .order_by(m.episode_id)
        .limit(PAGE)
    )
    after, high = id_range(buffer_id)
    while rows := backend.fetch(conn, query.where(m.episode_id.between(after, high))):
        yield _page(buffer_id, rows)
        after = stored.onward(rows[-1][0], after - 1, f"the rows of {replay_metadata.name}") + 1


def _page(buffer_id: int, rows: Sequence[Sequence[Any]]) -> Page:
    """Return these rows of the tables, checked."""
    where = f"table {replay_metadata.name}"
    ids, domains, loss, count, event, lowest, at = zip(*rows, strict=True)
    if None in domains:
        number = ids[domains.index(None)]
        raise stored.damaged(f"episode {number}", "has no row in table episode", episode_id=number)
    slots = Slots(
        stored.wholes(ids, where),
        stored.reals(loss, where),
        stored.reals(lowest, where),
        stored.wholes(count, where),
        stored.wholes(event, where, unknown=0),
        stored.reals(at, where),
    )
    values, least, of = slots.loss, slots.lowest, stored.wholes(domains, where) - first_id(buffer_id)
    possible = ~(values < 0) & ~np.isinf(values) & (slots.count >= 0) & (slots.event >= 0)
    possible &= (of > 0) & (of <= MAX_DOMAIN) & ~np.isinf(slots.at)
    possible &= ((least >= 0) & (least <= values)) | (np.isnan(least) & np.isnan(values))
    if not possible.all():
        number = ids[int(np.flatnonzero(~possible)[0])]
        raise stored.damaged(f"episode {number}: what is known of it", "cannot be as it is stored", episode_id=number)
    return Page(slots, of)


def domains_of(conn: Connection, backend: Backend, buffer_id: int, ids: Ints) -> Ints:
    """Return the domains of these episodes, by look-ups; 0 for one that was never added or has no row any more."""
    found = backend.select(conn, episode, ("id", "domain_id"), "id", distinct(ids).tolist())
    numbers, domains = zip(*sorted(found), strict=True) if found else ((), ())
    where = f"table {episode.name}"
    known, at = among(ids, stored.wholes(numbers, where))
    of = stored.wholes(domains, where) - first_id(buffer_id)
    if ((of < 0) | (of > MAX_DOMAIN)).any():
        raise stored.damaged(where, f"holds an episode of buffer {buffer_id} with a domain of another one")
    return np.where(known, of[at], 0) if len(of) else np.zeros(len(ids), np.int64)


def problems(
    conn: Connection, backend: Backend, buffer_id: int, law: Law, key_of: KeyOf | None, block_sum: int | None
) -> Iterator[str]:
    """Yield all that is wrong with the rows of a buffer's blocks, a sentence for each.

    Heads and contents are read one by one where they are damaged, so none hides another. ``block_sum`` is the
    fingerprint in the buffer's row; None if it cannot be read.
    """
    rows = backend.fetch(
        conn, select(*(block.c[name] for name in COLUMNS)).where(of_buffer(buffer_id, block.c.id)).order_by(block.c.id)
    )
    found = _each(rows, partial(_heads, buffer_id))
    yield from (str(part) for part in found if isinstance(part, StoreCorrupt))
    heads = own(*(part for part in found if not isinstance(part, StoreCorrupt)), np.zeros(0, HEAD))
    whole = len(heads) == len(rows)
    if whole and block_sum is not None and fingerprint(heads) != block_sum:
        yield "the rows of blocks are not those that the buffer's row knows: one is missing, or additional, or older"
    directory = Directory.of(heads)
    for name, other in directory.overlaps(heads):
        yield f"block {name} reaches into block {other} of the same domain"
    copy = Copy(heads, np.full(len(heads), -1), Pages(law), directory, fetching(conn, backend), key_of)
    for start in range(0, len(copy), CHUNK):
        blocks = np.arange(start, min(start + CHUNK, len(copy)))
        yield from (str(part) for part in _each(blocks, copy.paged) if isinstance(part, StoreCorrupt))
        copy = copy.forgotten(0)


def _each(items: Any, read: Callable[[Any], T]) -> list[T | StoreCorrupt]:
    """Read items, halving them where they cannot be read, and return what was read, and the errors of single ones."""
    try:
        return [read(items)]
    except StoreCorrupt as exc:
        if len(items) <= 1:
            return [exc]
    half = len(items) // 2
    return _each(items[:half], read) + _each(items[half:], read)


def write_changes(conn: Connection, backend: Backend, buffer_id: int, before: Heads, after: Copy, write: Write) -> Copy:
    """Write the blocks that distinguish a copy from the stored rows, and return the copy as it is stored then.

    Parameters
    ----------
    before : Heads
        The heads of the rows.
    after : Copy
        The copy that the rows are to be.
    write : Write
        The numbers of this write.
    """
    names = after.heads["name"]
    known, _ = among(names, before["name"])
    changed = after.heads["token"] == 0
    for which, store in ((changed & known, partial(backend.update, key="id")), (~known, backend.insert)):
        places = np.flatnonzero(which)
        for start in range(0, len(places), CHUNK):
            store(conn, block, columns=_written(buffer_id, after, places[start : start + CHUNK], write))
    stays, _ = among(before["name"], names)
    if not stays.all():
        backend.delete(conn, block, "id", before["name"][~stays].tolist())
    return after.as_stored(np.flatnonzero(changed | ~known), write.token)


def _written(buffer_id: int, copy: Copy, places: Ints, write: Write) -> dict[str, list[Any]]:
    """Return the columns of these blocks' rows."""
    rows, count = copy.heads[places], len(places)
    columns: dict[str, list[Any]] = {}
    for name, field in (NUMBERS | REALS).items():
        values: Any = rows[field] + first_id(buffer_id) if name == "domain_id" else rows[field]
        none = ABSENT.get(name)
        columns[name] = [None if value == none else value for value in values.tolist()]
    given = {"buffer_id": buffer_id, **write._asdict()}
    columns |= {name: [value] * count for name, value in given.items()}
    columns["checksum"] = _checksums(rows, *(np.full(count, number) for number in write)).tolist()
    parts = zip(copy.open(places).contents(), rows["name"].tolist(), rows["domain"].tolist(), strict=True)
    columns["data"] = [sealed(*part, write.token & ALL_BITS) for part in parts]
    return columns


def _heads(buffer_id: int, rows: Sequence[Sequence[Any]]) -> Heads:
    columns = dict(zip(COLUMNS, zip(*rows, strict=True) if rows else [()] * len(COLUMNS), strict=True))
    where = f"table {block.name}"
    wholes, reals = {}, {}
    for name in NUMBERS:
        none = ABSENT.get(name)
        wholes[name] = stored.wholes(columns[name], where, unknown=None if none is None else int(none))
    for name in REALS:
        values = stored.reals(columns[name], where, nullable=name in ABSENT)
        reals[name] = np.where(np.isnan(values), ABSENT[name], values) if name in ABSENT else values
    wholes["domain_id"] = wholes["domain_id"] - first_id(buffer_id)
    _refuse(buffer_id, wholes, reals)
    heads = head_rows(wholes["id"], wholes["domain_id"])
    for names, read in ((NUMBERS, wholes), (REALS, reals)):
        for name, field in names.items():
            heads[field] = read[name]
    heads["stamp"] = new_stamp()
    strange = stored.wholes(columns["buffer_id"], where) != buffer_id
    if strange.any():
        name = wholes["id"][strange][0]
        raise stored.damaged(f"block {name}", f"has a number of buffer {buffer_id}, and is said to be of another one")
    write = [stored.wholes(columns[name], where) for name in Write._fields]
    heads["token"] = write[Write._fields.index("token")]
    unlike = _checksums(heads, *write) != stored.wholes(columns["checksum"], where)
    if unlike.any():
        raise stored.damaged(f"block {wholes['id'][unlike][0]}", "has a head that does not match its checksum")
    return heads


def _refuse(buffer_id: int, wholes: dict[str, Ints], reals: dict[str, Floats]) -> None:
    """Raise ``StoreCorrupt`` for heads that cannot be: they decide what is reserved, opened and drawn."""
    low, high = id_range(buffer_id)
    name, first, last = wholes["id"], wholes["first_id"], wholes["last_id"]
    put, live, gaps = wholes["put"], wholes["live"], wholes["unmeasured"]
    measured, some = live > gaps, live > 0
    least, largest, total = reals["least_loss"], reals["largest_loss"], reals["weight_sum"]
    possible: Flags = (name >= low) & (name <= high) & (np.diff(name, prepend=low - 1) > 0)
    possible &= (wholes["domain_id"] >= 0) & (wholes["domain_id"] <= MAX_DOMAIN)
    possible &= (gaps >= 0) & (live >= gaps) & (put >= live) & (put <= SLOTS)
    possible &= (wholes["unit"] % UNIT == 0) & (wholes["unit"] > -LARGEST_UNIT) & (wholes["unit"] < LARGEST_UNIT)
    possible &= np.where(some, (first >= name) & (last >= first) & (last <= high), (first == NO_ID) & (last == -1))
    possible &= np.where(measured, (least >= 0) & (largest >= least) & (largest < np.inf), least > largest)
    mean = reals["mean_loss"]
    possible &= np.where(measured, (mean >= 0) & (mean <= largest), mean == 0)
    possible &= np.where(measured, (total > 1 / LARGEST_SUM) & (total < LARGEST_SUM), total == 0)
    if not possible.all():
        raise stored.damaged(f"block {name[~possible][0]}", "has a head that cannot be as it is stored")


def _checksums(heads: Heads, *write: Ints) -> Ints:
    numbers = [heads[field].astype(np.int64) for field in NUMBERS.values()]
    return checksums.of_columns(*numbers, *(np.ascontiguousarray(heads[field]) for field in REALS.values()), *write)
