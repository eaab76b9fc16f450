"""A persistent experience-replay memory: SQL tables under online, continual and reinforcement learners."""

from __future__ import annotations

from memstore.draws.strategies import DomainBalanced, Mixed, PrioritizedLoss, PrioritizedRecency, Strategy, Uniform
from memstore.episodes.log import History
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
from memstore.memory import EpisodicMemory
from memstore.opening import buffers, drop, open
from memstore.payload.fields import pad
from memstore.queries import Column, Condition, col
from memstore.queries.aggregates import count, maximum, mean, minimum, total
from memstore.queries.query import Query
from memstore.queries.records import EpisodeSummary, LossTrend, ReplayEvent, ReplayShare
from memstore.sharing.limiter import SamplesPerInsert
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
from memstore.upkeep.backup import Vacuumed, backup, vacuum
from memstore.upkeep.restore import Restored, restore
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
