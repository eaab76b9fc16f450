"""``EpisodicMemory``: the one facade. It delegates, and holds no SQL."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memstore import checkpoint, episodes, history, maintenance
from memstore.codec import Signature
from memstore.config import check_float, check_int, check_name
from memstore.errors import InvalidValue, MemoryEmpty
from memstore.inputs import (
    as_losses,
    check_count,
    check_ids,
    check_time,
    invalid_losses,
    make_offer,
    refuse_invalid,
)
from memstore.reader import MemoryReader, signature_of, stored_signature
from memstore.sampling import Normalize, make_batch
from memstore.snapshot import Rows, Snapshot
from memstore.strategies import Strategy, as_strategy
from memstore.types import Batch, EvictionPolicy, Retention, RetentionPolicy, UpdateResult


class EpisodicMemory(MemoryReader):
    """A persistent experience-replay memory; ``memstore.open`` makes one.

    Every change is committed when the call returns, unless inside ``transaction()``, and is then visible to every
    process. Reads never wait for writers. Threads may share a memory; a forked child gets its own connections and its
    own random stream; a pickled handle opens the same buffer where it is unpickled.
    """

    # Adding and removing

    def add(
        self,
        payload: Mapping[str, Any],
        *,
        domain: str = "default",
        loss: float | None = None,
        timestamp: Any = None,
        level: int | None = None,
        tags: Sequence[str] = (),
        key: str | None = None,
        extra: Any = None,
    ) -> int:
        """Add one episode; committed on return. Parameters as for ``extend``.

        Returns
        -------
        int
            The episode's id; with a ``key`` that was seen before, that of the first episode with this key.
        """
        ids = self._insert(
            payload, None, domain=domain, loss=loss, timestamp=timestamp, level=level, tags=tags, key=key, extra=extra
        )
        return int(ids[0])

    def extend(
        self,
        payload: Mapping[str, Any],
        *,
        domain: str | Sequence[str] = "default",
        loss: Any = None,
        timestamp: Any = None,
        level: Any = None,
        tags: Any = (),
        key: Any = None,
        extra: Any = None,
    ) -> NDArray[np.int64]:
        """Add n episodes in one commit: all of them or none. Every keyword takes one value or a sequence of n.

        Parameters
        ----------
        payload : dict
            Fields of n rows each: arrays of shape (n, ...), or lists of n arrays, numbers, str or bytes; may be
            nested. The first add fixes the buffer's signature.
        domain : str
            What the episode belongs to: a task, an environment, a data source.
        loss : float >= 0, optional
            As measured by the trainer; None means never measured: drawn with the highest priority.
        timestamp : float or aware datetime, optional
            Seconds; now by default.
        level : int, optional
        tags : sequence of str
        key : str, optional
            Idempotency key: adding it again is a no-op that returns the first id, also after a crash or an eviction.
        extra : JSON value, optional

        Returns
        -------
        int64 array, shape (n,)
            Ids in the order given; consecutive but for repeated keys.

        Raises
        ------
        PayloadError, InvalidValue
            When anything is refused; nothing was written.
        MemoryFull
            Under eviction policy ``none``, when they do not all fit.
        """
        count = Signature.batch_size(payload)
        return self._insert(
            payload, count, domain=domain, loss=loss, timestamp=timestamp, level=level, tags=tags, key=key, extra=extra
        )

    def _insert(self, payload: Mapping[str, Any], count: int | None, **columns: Any) -> NDArray[np.int64]:
        now = time.time()

        def encode(signature: Signature) -> list[bytes]:
            return [signature.encode_one(payload)] if count is None else signature.encode(payload, count)

        # Before the lock is taken, so that other writers do not wait for it.
        assumed = stored_signature(self._session.committed.signature) or Signature.infer(payload, count)
        offer = make_offer(encode(assumed), now, **columns)

        def work(snapshot: Snapshot) -> episodes.Inserted:
            stored = signature_of(snapshot)
            if stored is None:
                maintenance.fix_signature(snapshot, assumed.to_json())
            elif stored != assumed:
                return episodes.insert(snapshot, replace(offer, blobs=encode(stored)))
            return episodes.insert(snapshot, offer)

        inserted = self._session.write(work, lambda result: result.blobs)
        self._session.cache.drop(inserted.evicted.tolist())
        return inserted.ids

    def delete(self, ids: Any) -> int:
        """Remove episodes in one commit; ids that are not live are ignored. Returns how many were removed."""
        wanted = check_ids(ids)

        def work(snapshot: Snapshot) -> Rows:
            rows = snapshot.find(wanted)
            episodes.remove(snapshot, rows)
            return rows

        removed = self._session.write(work)
        self._session.cache.drop(removed.ids.tolist())
        return len(removed)

    def consolidate(self, policy: RetentionPolicy, *, dry_run: bool = False, now: Any = None) -> Retention:
        """Remove what the policy does not keep, in one commit; with ``dry_run`` only count it.

        ``now`` (seconds or an aware datetime) is what ``max_age`` counts back from.
        """
        maintenance.check_policy(policy)
        at = time.time() if now is None else check_time("now", now)
        scope = self._session.read if dry_run else self._session.write
        retention, rows = scope(lambda s: maintenance.retain(s, policy, at, dry_run=dry_run))
        if not dry_run:
            self._session.cache.drop(rows.ids.tolist())
        return retention

    def configure(
        self,
        *,
        capacity: int | None = None,
        strategy: Strategy | str | None = None,
        alpha: float | None = None,
        eviction: EvictionPolicy | str | None = None,
        max_replays: int | None = None,
    ) -> int:
        """Change stored settings for every process, in one commit; shrinking evicts. Returns how many were evicted.

        ``max_replays=0`` lifts the limit.
        """
        changes: dict[str, Any] = {
            "capacity": capacity,
            "strategy": strategy,
            "alpha": alpha,
            "eviction": eviction,
            "max_replays": max_replays,
        }

        def work(snapshot: Snapshot) -> NDArray[np.int64]:
            settings = maintenance.changed_settings(snapshot.settings, **changes)
            return maintenance.reconfigure(snapshot, settings)

        evicted = self._session.write(work)
        if strategy is not None or alpha is not None:
            self._strategy = None
        return len(evicted)

    # Drawing and learning

    def sample(
        self,
        count: int,
        *,
        strategy: Strategy | str | None = None,
        alpha: float | None = None,
        beta: float = 0.0,
        replacement: bool = False,
        normalize: Normalize = "buffer",
        exact_probability: bool = False,
    ) -> Batch:
        """Draw episodes from one consistent snapshot, with their payloads.

        Parameters
        ----------
        count : int
            Without replacement, the default, a memory that holds fewer returns them all.
        strategy, alpha : optional
            In place of the buffer's, for this call.
        beta : float
            Exponent of the importance weights ``(p / p_min) ** -beta`` (Schaul et al. 2016, section 3.4); 0 gives
            ones. They correct the bias exactly at ``beta=1`` with ``replacement=True``, approximately without.
        normalize : "buffer" or "batch"
            What ``p_min`` is taken over. For ``Mixed`` over the buffer it is the share-weighted sum of the components'
            minima: never above the true one, and equal to it when at most one component is not uniform.
        exact_probability : bool
            Compute ``probability`` even where that needs a scan of the buffer.

        Raises
        ------
        MemoryEmpty
            When there is nothing to draw from.
        """
        wanted = check_count(count)
        beta = check_float("beta", beta)
        if normalize not in ("buffer", "batch"):
            raise InvalidValue(f"normalize must be 'buffer' or 'batch', got {normalize!r}")

        def work(snapshot: Snapshot) -> Batch:
            chosen = self._default_strategy(snapshot) if strategy is None else as_strategy(strategy)
            if alpha is not None:
                chosen = chosen.with_alpha(alpha)
            if not snapshot.live:
                raise MemoryEmpty(f"{self!r} holds no episode to draw; add some first")
            rows = chosen.draw(snapshot, self._session.rng, wanted, Rows.none(), replacement=replacement)
            signature = signature_of(snapshot)
            assert signature is not None
            return make_batch(
                snapshot,
                chosen,
                rows,
                signature,
                self._session.cache,
                keep=not self._session.database.transaction_open,
                beta=beta,
                normalize=normalize,
                exact=exact_probability,
            )

        return self._session.draw(work)

    def update(
        self,
        replayed: Batch | Any,
        *,
        loss: Any,
        step: int | None = None,
        on_invalid: Literal["raise", "skip"] = "raise",
    ) -> UpdateResult:
        """Write losses back, and one replay event each, in one commit.

        Parameters
        ----------
        replayed : Batch or ids
            An id given twice counts as two replays; its last loss stays.
        loss : array of n, or one number
            Finite and >= 0.
        step : int, optional
            The trainer's step, for the history.
        on_invalid : "raise" or "skip"
            What to do with losses that are NaN, infinite or negative: refuse everything, or write the valid ones and
            report the others as ``rejected``.
        """
        ids = replayed.ids if isinstance(replayed, Batch) else check_ids(replayed)
        losses = as_losses(loss, len(ids))
        if on_invalid not in ("raise", "skip"):
            raise InvalidValue(f"on_invalid must be 'raise' or 'skip', got {on_invalid!r}")
        if on_invalid == "raise":
            refuse_invalid(losses, ids.tolist())
        valid = ~invalid_losses(losses)
        replay = history.Replay(
            at=time.time(),
            step=None if step is None else check_int("step", step, minimum=-(2**62)),
            consumer=self._consumer,
            strategy=replayed.strategy if isinstance(replayed, Batch) else None,
        )
        if not valid.any():
            return UpdateResult(np.empty(0, np.int64), np.empty(0, np.int64), np.unique(ids))
        updated, missing = self._session.write(lambda s: history.update(s, replay, ids[valid], losses[valid]))
        rejected = np.setdiff1d(ids[~valid], ids[valid])
        return UpdateResult(updated, missing, rejected)

    # Transactions, checkpoints, life

    @contextmanager
    def transaction(self) -> Iterator[EpisodicMemory]:
        """Make everything inside one commit: episodes, losses, history, checkpoint and the generator's state.

        It holds the buffer's write lock from the start: wrap update and checkpoint in it, not the training step. On an
        exception nothing of the block remains, and ids seen inside are void. Nested blocks are savepoints.
        """
        with self._session.transaction():
            yield self

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Store a trainer's state (nested dicts and lists of arrays, numbers, str, bytes) with the generator's.

        Replaces the checkpoint of the same name; atomic and durable like every write. Inside ``transaction()`` it
        commits together with the episodes and losses it belongs to.
        """
        check_name("checkpoint", name)
        self._session.write(lambda s: checkpoint.save(s, name, state, self._session.rng, time.time()))

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """The stored state; the generator goes on where it was then.

        Raises
        ------
        CheckpointNotFound, StoreCorrupt
            The generator is left as it was.
        """
        check_name("checkpoint", name)
        state, generator = self._session.read(lambda s: checkpoint.load(s, name))
        self._session.restore(generator)
        return state

    def checkpoints(self) -> list[str]:
        """Names of the stored checkpoints, oldest first."""
        return self._session.read(checkpoint.names)

    def close(self) -> None:
        """Close the connections; later calls raise ``MemoryClosed``. Nothing needs to be flushed."""
        self._session.close()

    def __enter__(self) -> EpisodicMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        seeds = self._session.child_seeds()
        return {
            "address": self._session.database.address(),
            "name": self._name,
            "strategy": self._strategy and self._strategy.to_json(),
            "cache_bytes": self._session.cache.max_bytes,
            "seeds": (seeds.entropy, seeds.spawn_key),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        from memstore.opening import reopen

        reopen(self, state)
