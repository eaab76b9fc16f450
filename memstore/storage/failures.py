"""memstore's errors for the failures of a driver. Each message gives advice."""

from __future__ import annotations

from memstore.errors import (
    ConnectionLost,
    ForeignTransaction,
    MemstoreError,
    NotAMemstore,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    TransactionDead,
)
from memstore.storage.address import restoring
from memstore.storage.backends import Backend, Failure
from memstore.storage.owners import Owner


def reraise_interrupt(exc: BaseException, outer: BaseException | None) -> None:
    """Raise the interrupt that ``exc`` has replaced, if there is one.

    An exception replaces an interrupt if it is raised while Python handles the interrupt, such as by an ``assert`` in a
    ``finally``. ``outer`` is the exception that was handled before the call. It is ignored even if it is an interrupt.
    """
    hidden = exc.__context__
    while hidden is not None and hidden is not outer:
        if not isinstance(hidden, Exception):
            raise hidden from None  # the exception that replaced it has no information
        hidden = hidden.__context__


def dead() -> TransactionDead:
    """Return the error for a call in a transaction that has ended."""
    return TransactionDead(
        "this transaction was ended by the database (a full disk, a lost connection, a conflict) or by an interrupt: "
        "nothing of the block was committed; leave the block, remove the cause, and run it again"
    )


def foreign(owner: Owner) -> ForeignTransaction:
    """Return the error for a call that would become part of the transaction of another thread or task."""
    return ForeignTransaction(
        f"the open transaction() of this memory belongs to {owner}, and nobody else may write in it or commit it; "
        "nothing was written. Let the block end first; in asyncio run it whole, as one function (asyncio.to_thread)"
    )


_SAID: dict[Failure, tuple[type[MemstoreError], str]] = {
    Failure.CONFLICT: (StoreBusy, ": rolled back for the sake of another writer, nothing was written; run it again"),
    Failure.FULL: (StoreFull, ": no room to write, the transaction was rolled back; free some space"),
    Failure.READ_ONLY: (StoreReadOnly, " is read-only for this process; check its permissions"),
    Failure.NOT_A_DATABASE: (NotAMemstore, " is not a database; nothing was changed"),
    Failure.NAME_TAKEN: (NotAMemstore, " has something else by a name of memstore's, nothing was changed"),
    Failure.DEVICE: (
        StoreUnavailable,
        ": the operating system could not read or write it, nothing was written; look at its disk and at the system's "
        "messages (dmesg)",
    ),
    Failure.LOST: (ConnectionLost, ": the connection broke, nothing was written; run it again"),
}
"""The error for each kind of failure, and the end of a sentence that begins with the database."""


def error_for(failure: Failure, backend: Backend, exc: Exception, holder: Owner | None = None) -> MemstoreError:
    """Return memstore's error for an error of the driver. ``holder`` is the writer in this process, if there is one."""
    detail = str(getattr(exc, "orig", exc)).splitlines()[0]
    where = backend.describe()
    cause = _cause(failure, backend)
    if cause is not None:
        return type(cause)(f"{where}: {cause} ({detail})")
    match failure:
        case Failure.BUSY:
            who = backend.lock_holder() if holder is None else f"this very process, in {holder}, held"
            advice = "keep transaction() blocks short, or open with a larger busy_timeout="
            return StoreBusy(f"{where}: {who} the write lock for {backend.busy_timeout:g} s; {advice} ({detail})")
        case Failure.CORRUPT:
            return StoreCorrupt(f"{where} is damaged; run 'memstore check', {restoring(where)} ({detail})")
        case Failure.UNAVAILABLE:
            return StoreUnavailable(f"{where} cannot be opened; {backend.advice} ({detail})")
        case Failure.OTHER:
            return MemstoreError(f"{where}: {detail}")
    kind, said = _SAID[failure]
    return kind(f"{where}{said} ({detail})")


def _cause(failure: Failure, backend: Backend) -> MemstoreError | None:
    """Find the cause in the operating system, for the failures that have one there."""
    match failure:
        case Failure.UNAVAILABLE:
            found = backend.refusal("open")
            return found if found is None or isinstance(found, StoreFull) else StoreUnavailable(str(found))
        case Failure.READ_ONLY:
            return backend.refusal("write")
        case Failure.FULL | Failure.DEVICE:
            return backend.refusal("room")
        case _:
            return None
