"""Every error memstore raises.

One root, ``MemstoreError``; each subclass is also the builtin that a Python user would expect, so that
``except LookupError`` or ``except TimeoutError`` do what they say. Driver errors appear only as ``__cause__``.

The text of an error may repeat names from the database, and the database's own words, as they are. A terminal may obey
what is in them: print ``repr`` of the text, or its ``visible`` form as the command does. Warnings are visible already,
because Python prints them itself.
"""

from __future__ import annotations

from memstore.printable import visible

MAX_MESSAGE = 500
"""Characters of a message. What users name, and what a file holds, may be of any length."""


class MemstoreError(Exception):
    """Root of all errors raised by memstore. A message has at most 500 characters: a longer one lost its middle."""

    def __init__(self, message: str = "") -> None:
        super().__init__(bounded(str(message)))


def bounded(text: str, most: int = MAX_MESSAGE) -> str:
    """The text, cut in its middle where it is longer: what is wrong stands first, and what to do about it last."""
    if len(text) <= most:
        return text
    tail = most * 2 // 5
    return f"{text[: most - tail - 5]} ... {text[-tail:]}"


class StoreWarning(UserWarning):
    """The database works, but where it lies it may not keep its promises."""

    def __str__(self) -> str:
        return visible(super().__str__())


class ConfigError(MemstoreError, ValueError):
    """A setting is invalid, or differs from the one the buffer was created with."""


class InvalidValue(MemstoreError, ValueError):
    """An argument was refused (loss, timestamp, count, name ...); nothing was written."""


class PayloadError(MemstoreError, ValueError):
    """A payload does not fit the buffer's signature, or cannot be stored at all; nothing was written."""


class EpisodeNotFound(MemstoreError, LookupError):
    """No live episode has this id: it was never added, was evicted, or was deleted."""


class CheckpointNotFound(MemstoreError, LookupError):
    """No checkpoint of this name is stored for the buffer."""


class MemoryEmpty(MemstoreError, LookupError):
    """A draw was asked of a memory that holds no episode."""


class MemoryFull(MemstoreError, RuntimeError):
    """The memory is at capacity and its eviction policy is ``none``; nothing was written."""


class MemoryClosed(MemstoreError, RuntimeError):
    """The memory was closed; open it again."""


class TransactionDead(MemstoreError, RuntimeError):
    """The database ended the enclosing transaction itself, or an interrupt did; nothing of the block was committed."""


class ForeignTransaction(MemstoreError, RuntimeError):
    """The open ``transaction()`` belongs to another thread or asyncio task, and cannot end meanwhile; nothing was
    written."""


class StoreBusy(MemstoreError, TimeoutError):
    """Another connection held the write lock beyond ``busy_timeout``, or won a conflict; nothing was written."""


class WaitTimeout(MemstoreError, TimeoutError):
    """What was waited for did not happen in time; nothing was written."""


class StoreFull(MemstoreError, OSError):
    """The disk, quota or database size limit was reached; the transaction was rolled back."""


class StoreReadOnly(MemstoreError, OSError):
    """The database cannot be written by this process."""


class StoreUnavailable(MemstoreError, OSError):
    """The database cannot be opened or reached, or its file is no longer the one that was opened."""


class ConnectionLost(MemstoreError, ConnectionError):
    """The connection broke.

    Attributes
    ----------
    outcome_unknown : bool
        True when the connection broke during a commit, so that the commit may or may not have happened.
    """

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class StoreCorrupt(MemstoreError):
    """Stored bytes are damaged or contradict each other.

    Attributes
    ----------
    episode_id : int or None
        The episode concerned, when it is known.
    """

    def __init__(self, message: str, *, episode_id: int | None = None) -> None:
        super().__init__(message)
        self.episode_id = episode_id


class SchemaError(MemstoreError):
    """The tables in the database are not those of this version of memstore."""


class SchemaTooOld(SchemaError):
    """The tables were made by an older memstore; ``memstore upgrade`` brings them up to date."""


class SchemaTooNew(SchemaError):
    """The tables were made by a newer memstore; upgrade the library."""


class NotAMemstore(SchemaError):
    """The file or database holds something else; memstore did not touch it."""
