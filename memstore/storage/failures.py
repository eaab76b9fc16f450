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
from memstore.storage.refusals import Refusal


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


def error_for(failure: Failure, backend: Backend, exc: Exception, holder: Owner | None = None) -> MemstoreError:
    """Return memstore's error for an error of the driver. ``holder`` is the writer in this process, if there is one."""
    detail = str(getattr(exc, "orig", exc)).splitlines()[0]
    where = backend.describe()
    refusal = _refusal(failure, backend)
    if refusal is not None:
        return refusal.error(f"{where}: {refusal.text} ({detail})")
    match failure:
        case Failure.BUSY:
            who = backend.lock_holder() if holder is None else f"this very process, in {holder}, held"
            return StoreBusy(
                f"{where}: {who} the write lock for {backend.busy_timeout:g} s; keep transaction() "
                f"blocks short, or open with a larger busy_timeout= ({detail})"
            )
        case Failure.CONFLICT:
            return StoreBusy(
                f"{where}: rolled back for the sake of another writer, nothing was written; run it again ({detail})"
            )
        case Failure.FULL:
            return StoreFull(f"{where}: no room to write, the transaction was rolled back; free some space ({detail})")
        case Failure.READ_ONLY:
            return StoreReadOnly(f"{where} is read-only for this process; check its permissions ({detail})")
        case Failure.CORRUPT:
            return StoreCorrupt(f"{where} is damaged; run 'memstore check', {restoring(where)} ({detail})")
        case Failure.NOT_A_DATABASE:
            return NotAMemstore(f"{where} is not a database; nothing was changed ({detail})")
        case Failure.NAME_TAKEN:
            return NotAMemstore(f"{where} has something else by a name of memstore's, nothing was changed ({detail})")
        case Failure.UNAVAILABLE:
            return StoreUnavailable(f"{where} cannot be opened; {backend.advice} ({detail})")
        case Failure.DEVICE:
            return StoreUnavailable(
                f"{where}: the operating system could not read or write it, nothing was written; look at its disk and "
                f"at the system's messages (dmesg) ({detail})"
            )
        case Failure.LOST:
            return ConnectionLost(f"{where}: the connection broke, nothing was written; run it again ({detail})")
        case _:
            return MemstoreError(f"{where}: {detail}")


def _refusal(failure: Failure, backend: Backend) -> Refusal | None:
    """Find the cause in the operating system, for the failures that have one there."""
    match failure:
        case Failure.UNAVAILABLE:
            found = backend.refusal("open")
            if found is not None and not issubclass(found.error, StoreFull):
                return Refusal(StoreUnavailable, found.text)  # the file cannot even be read
            return found
        case Failure.READ_ONLY:
            return backend.refusal("write")
        case Failure.FULL | Failure.DEVICE:
            return backend.refusal("room")
        case _:
            return None
