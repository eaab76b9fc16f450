"""A persistent experience-replay memory: SQL tables under online, continual and reinforcement learners."""

from __future__ import annotations

from memstore.aggregates import count, maximum, mean, minimum, total
from memstore.answers import EpisodeSummary, LossTrend, ReplayEvent, ReplayShare
from memstore.columns import Column, Condition, col
from memstore.copying import Vacuumed, backup, vacuum
from memstore.errors import (
    CheckpointNotFound,
    ConfigError,
    ConnectionLost,
    EpisodeNotFound,
    ForeignTransaction,
    InvalidValue,
    MemoryClosed,
    MemoryEmpty,
    MemoryFull,
    MemstoreError,
    NotAMemstore,
    PayloadError,
    SchemaError,
    SchemaTooNew,
    SchemaTooOld,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    StoreWarning,
    TransactionDead,
    WaitTimeout,
)
from memstore.events import History
from memstore.fields import pad
from memstore.limiter import SamplesPerInsert
from memstore.memory import EpisodicMemory
from memstore.opening import buffers, drop, open
from memstore.query import Query
from memstore.restoring import Restored, restore
from memstore.strategies import DomainBalanced, Mixed, PrioritizedLoss, PrioritizedRecency, Strategy, Uniform
from memstore.types import (
    Batch,
    CheckReport,
    Episode,
    EvictionPolicy,
    Match,
    ReplayMetadata,
    ReplayStats,
    ReplayStrategy,
    Retention,
    RetentionPolicy,
    UpdateResult,
)
from memstore.version import __version__

__all__ = [
    "Batch",
    "CheckReport",
    "CheckpointNotFound",
    "Column",
    "Condition",
    "ConfigError",
    "ConnectionLost",
    "DomainBalanced",
    "Episode",
    "EpisodeNotFound",
    "EpisodeSummary",
    "EpisodicMemory",
    "EvictionPolicy",
    "ForeignTransaction",
    "History",
    "InvalidValue",
    "LossTrend",
    "Match",
    "MemoryClosed",
    "MemoryEmpty",
    "MemoryFull",
    "MemstoreError",
    "Mixed",
    "NotAMemstore",
    "PayloadError",
    "PrioritizedLoss",
    "PrioritizedRecency",
    "Query",
    "ReplayEvent",
    "ReplayMetadata",
    "ReplayShare",
    "ReplayStats",
    "ReplayStrategy",
    "Restored",
    "Retention",
    "RetentionPolicy",
    "SamplesPerInsert",
    "SchemaError",
    "SchemaTooNew",
    "SchemaTooOld",
    "StoreBusy",
    "StoreCorrupt",
    "StoreFull",
    "StoreReadOnly",
    "StoreUnavailable",
    "StoreWarning",
    "Strategy",
    "TransactionDead",
    "Uniform",
    "UpdateResult",
    "Vacuumed",
    "WaitTimeout",
    "__version__",
    "backup",
    "buffers",
    "col",
    "count",
    "drop",
    "maximum",
    "mean",
    "minimum",
    "open",
    "pad",
    "restore",
    "total",
    "vacuum",
]
