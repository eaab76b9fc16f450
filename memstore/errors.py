"""All errors that memstore raises.

``MemstoreError`` is their root. Each subclass is also a subclass of the builtin error that a Python user expects, so
that ``except LookupError`` and ``except TimeoutError`` work. Errors of drivers appear only as ``__cause__``.

The text of an error may contain names and messages from the database, unchanged. A terminal may obey escape sequences
in them, so print ``repr`` of the text, or its ``visible`` form as the command line does. The texts of warnings are
visible already, because Python itself prints them.
"""

from __future__ import annotations

MAX_MESSAGE = 500
"""A message has at most this many characters. Names and texts in a file may have any length, so messages are cut."""


class MemstoreError(Exception):
    """The root of all errors of memstore. A message has at most 500 characters: a longer one is cut in the middle."""

    def __init__(self, message: str = "") -> None:
        super().__init__(bounded(str(message)))


def bounded(text: str, most: int = MAX_MESSAGE) -> str:
    """Cut a long text in its middle. The problem stands at the beginning of a message, and the advice at its end."""
    if len(text) <= most:
        return text
    tail = most * 2 // 5
    return f"{text[: most - tail - 5]} ... {text[-tail:]}"


class StoreWarning(UserWarning):
    """The database works, but it may break a promise because of its place (a network file system, hard links)."""


class ConfigError(MemstoreError, ValueError):
    """A setting is invalid, or differs from the one the buffer was created with."""


class InvalidValue(MemstoreError, ValueError):
    """An argument was refused (loss, timestamp, count, name ...); nothing was written."""


class PayloadError(MemstoreError, ValueError):
    """A payload does not fit the buffer's signature, or cannot be stored at all; nothing was written."""


class EpisodeNotFound(MemstoreError, LookupError):
    """No live episode has this id. It was never added, or was evicted, or was deleted."""


class CheckpointNotFound(MemstoreError, LookupError):
    """The buffer has no checkpoint of this name."""


class MemoryEmpty(MemstoreError, LookupError):
    """There is no episode to draw."""


class MemoryFull(MemstoreError, RuntimeError):
    """The memory is at capacity and its eviction policy is ``none``; nothing was written."""


class MemoryClosed(MemstoreError, RuntimeError):
    """The memory was closed. Open it again."""


class TransactionDead(MemstoreError, RuntimeError):
    """The database or an interrupt ended the open transaction. Nothing of its block was committed."""


class ForeignTransaction(MemstoreError, RuntimeError):
    """The open ``transaction()`` belongs to another thread or asyncio task, which cannot end it now.

    Nothing was written.
    """


class StoreBusy(MemstoreError, TimeoutError):
    """Another connection held the write lock longer than ``busy_timeout``, or won a conflict; nothing was written."""


class WaitTimeout(MemstoreError, TimeoutError):
    """The awaited event did not happen in time; nothing was written."""


class StoreFull(MemstoreError, OSError):
    """The disk is full, or a quota or size limit was reached; the transaction was rolled back."""


class StoreReadOnly(MemstoreError, OSError):
    """This process may not write the database."""


class StoreUnavailable(MemstoreError, OSError):
    """The database cannot be opened or reached, or its file was replaced after it was opened."""


class ConnectionLost(MemstoreError, ConnectionError):
    """The connection to the database broke.

    Attributes
    ----------
    outcome_unknown : bool
        True if the connection broke during a commit: the commit may have happened or not.
    """

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class StoreCorrupt(MemstoreError):
    """Stored data is damaged, or contradicts other stored data.

    Attributes
    ----------
    episode_id : int or None
        The id of the damaged episode, if it is known.
    """

    def __init__(self, message: str, *, episode_id: int | None = None) -> None:
        super().__init__(message)
        self.episode_id = episode_id


class SchemaError(MemstoreError):
    """The tables in the database are not those of this version of memstore."""


class SchemaTooOld(SchemaError):
    """An older memstore made the tables. ``memstore upgrade`` brings them up to date."""


class SchemaTooNew(SchemaError):
    """A newer memstore made the tables. Upgrade the library."""


class NotAMemstore(SchemaError):
    """The file or the database holds something else. memstore changed nothing in it."""
