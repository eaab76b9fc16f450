"""``EpisodicMemory``: the one facade. It delegates, and holds no SQL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.snapshot import Snapshot
from memstore.config import check_int, check_name
from memstore.drawing import MemoryDrawer
from memstore.draws.strategies import Strategy
from memstore.episodes import checkpoint
from memstore.episodes import insert as episodes
from memstore.episodes import losses as recording
from memstore.episodes.eviction import Eviction
from memstore.episodes.inputs import as_losses, check_ids, check_option, invalid_losses, make_offer, refuse_invalid
from memstore.episodes.log import Group, History
from memstore.errors import InvalidValue
from memstore.payload.document import pack
from memstore.payload.signature import Signature
from memstore.queries import EVERY, Condition
from memstore.queries.parser import as_condition
from memstore.reader import signature_of, stored_signature
from memstore.sharing import leases
from memstore.sharing import limiter as limits
from memstore.sharing.limiter import SamplesPerInsert
from memstore.sharing.waiting import check_timeout, wait_until
from memstore.storage.blocks import Block
from memstore.types import Batch, EvictionPolicy, Retention, RetentionPolicy, UpdateResult
from memstore.upkeep import removal, retention
from memstore.upkeep import settings as maintenance
from memstore.values.foreign import numpy_payload
from memstore.values.letting_go import held_until_done
from memstore.values.times import check_time


class EpisodicMemory(MemoryDrawer):
    """A persistent experience-replay memory; ``memstore.open`` makes one.

    Every change is committed when the call returns, unless inside ``transaction()``, and is then visible to every
    process. Reads and draws never wait for writers; under a limiter a draw is counted, which is a write. A forked child
    gets its own connections and its own random stream; a pickled handle opens the same buffer where it is unpickled.

    Threads and asyncio tasks may share a memory. A ``transaction()`` belongs to the thread and task that opened it, and
    so does the generator until its end: draws of others take generators of a second stream from the same seed, which no
    checkpoint holds. Otherwise all draw from the one generator, one after the other. Writes of other threads wait for
    the end of the block; where that would be for ever, ``ForeignTransaction`` is raised at once.

    An interrupt (Ctrl-C, a signal handler that raises ``SystemExit``) comes out as itself: what was open is undone, or
    was committed as a whole, and the next call works.
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
        timeout: float | None = None,
    ) -> int:
        """Add one episode; committed on return. Parameters as for ``extend``, each of them one value.

        Returns
        -------
        int
            The episode's id; with a ``key`` that was seen before, that of the first episode with this key.
        """
        columns = {"domain": domain, "loss": loss, "timestamp": timestamp, "level": level, "tags": tags, "key": key}
        return int(self._insert(numpy_payload(payload), None, timeout, columns | {"extra": extra})[0])

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
        timeout: float | None = None,
    ) -> NDArray[np.int64]:
        """Add n episodes in one commit: all of them or none. Every keyword takes one value or a sequence of n.

        Parameters
        ----------
        payload : dict
            Fields of n rows each: arrays of shape (n, ...), or lists of n arrays, numbers, str or bytes; may be
            nested. Tensors are detached and copied to the CPU. The first add fixes the buffer's signature.
        domain : str
            What the episode belongs to: a task, an environment, a data source.
        loss : float >= 0, optional
            As measured by the trainer; None means never measured: drawn with the highest priority.
        timestamp : float, aware datetime or datetime64, optional
            Seconds; now by default. A datetime64 is UTC. Beyond 1e11 (the year 5138) it is refused as milliseconds.
        level : int, optional
        tags : sequence of str
        key : str, optional
            Idempotency key: adding it again is a no-op that returns the first id, also after a crash or an eviction.
        extra : JSON value, optional
            Numpy and PyTorch scalars become numbers, arrays lists; whole numbers of any size are kept exactly.
        timeout : float, optional
            Seconds to wait while the buffer's limiter (``SamplesPerInsert``) holds adds back; by default as long as it
            takes. One value for all.

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
        WaitTimeout
            When the limiter did not admit them in time; nothing was written.
        """
        columns = {"domain": domain, "loss": loss, "timestamp": timestamp, "level": level, "tags": tags, "key": key}
        payload = numpy_payload(payload)
        return self._insert(payload, Signature.batch_size(payload), timeout, columns | {"extra": extra})

    def _insert(
        self, payload: Mapping[str, Any], count: int | None, timeout: float | None, columns: dict[str, Any]
    ) -> NDArray[np.int64]:
        now = time.time()
        patience = check_timeout(timeout)

        def encode(signature: Signature) -> list[bytes]:
            return [signature.encode_one(payload)] if count is None else signature.encode(payload, count)

        # Before the lock is taken, so that other writers do not wait for it.
        assumed = stored_signature(self._session.committed.signature) or Signature.infer(payload, count)
        offer = make_offer(encode(assumed), now, one=count is None, **columns)
        group = Group(now, self.consumer)

        def work(snapshot: Snapshot) -> episodes.Inserted:
            limits.admit_add(snapshot)
            stored = signature_of(snapshot)
            if stored is None:
                maintenance.fix_signature(snapshot, assumed.to_json())
            elif stored != assumed:
                return episodes.insert(snapshot, replace(offer, blobs=encode(stored)), group)
            return episodes.insert(snapshot, offer, group)

        def attempt() -> episodes.Inserted | None:
            try:
                return self._session.write(work, lambda result: result.blobs)
            except limits.OutOfStep:
                return None

        with held_until_done(offer.blobs):
            inserted = wait_until(self._session, attempt, patience, self._standing)
        self._session.cache.drop(inserted.evicted.tolist())
        return inserted.ids

    def delete(self, ids: Any = None, *, where: Condition | str | None = None) -> int:
        """Remove episodes in one commit: those with these ids, or all that pass a condition.

        Keys of removed episodes stay known, and the history records each departure as ``deleted``. Takes the write lock
        for as long as it works: 60 to 80 us an episode.

        Parameters
        ----------
        ids : int or several, optional
            Those that are not live are ignored.
        where : Condition or str, optional
            In place of ids, such as ``(col.loss < 0.1) & (col.replay_count > 5)`` or ``"loss < 0.1"``.

        Returns
        -------
        int
            How many were removed.

        Raises
        ------
        InvalidValue
            When neither or both are given, or ``where`` is no condition on live episodes; nothing was removed.
        """
        if (ids is None) == (where is None):
            raise InvalidValue("delete takes either ids or where=...; clear() removes every episode")
        condition = None if where is None else as_condition(where)
        wanted = check_ids([] if ids is None else ids)
        return self._remove(lambda s: [wanted] if condition is None else removal.passing(s, condition))

    def clear(self) -> int:
        """Remove every live episode in one commit; returns how many there were.

        What stays: the history (with a departure ``deleted`` for each), the tally behind ``loss_trend``, the keys ever
        given, checkpoints, settings and signature, and the counters, so that no id is used again, the largest priority
        ever measured is remembered, and a reservoir goes on with its stream.
        """
        return self._remove(lambda s: removal.passing(s, EVERY))

    def _remove(self, which: Callable[[Snapshot], Iterable[NDArray[np.int64]]]) -> int:
        group = Group(time.time(), self.consumer, "deleted")
        removed = self._session.write(lambda s: removal.remove_all(s, which(s), group))
        self._session.cache.drop(removed.tolist())
        return len(removed)

    def consolidate(self, policy: RetentionPolicy, *, dry_run: bool = False, now: Any = None) -> Retention:
        """Remove what the policy does not keep, in one commit; with ``dry_run`` only count it.

        ``now`` (seconds, an aware datetime or a datetime64) is what ``max_age`` counts back from. Looking for similar
        payloads reads them all, before the write lock is taken, so that other writers do not wait for it.
        """
        policy = retention.checked_policy(policy)
        at = time.time() if now is None else check_time("now", now)
        twins = self._session.read(lambda s: retention.find_twins(s, signature_of(s), policy, at))
        scope = self._session.read if dry_run else self._session.write
        group = None if dry_run else Group(time.time(), self.consumer, "consolidated")
        result, rows = scope(lambda s: retention.retain(s, policy, at, twins, group))
        if not dry_run:
            self._session.cache.drop(rows.ids.tolist())
        return result

    def configure(
        self,
        *,
        capacity: int | None = None,
        strategy: Strategy | str | None = None,
        alpha: float | None = None,
        eviction: Eviction | EvictionPolicy | str | None = None,
        max_replays: int | None = None,
        limiter: SamplesPerInsert | Literal["none"] | None = None,
        history: History | Literal["on", "off"] | None = None,
    ) -> int:
        """Change stored settings for every process, in one commit; shrinking evicts. Returns how many were evicted.

        ``max_replays=0`` and ``limiter="none"`` lift those limits; a new limiter counts from now on; a history that is
        to be shorter is cut at once.
        """
        changes: dict[str, Any] = {
            "capacity": capacity,
            "strategy": strategy,
            "alpha": alpha,
            "eviction": eviction,
            "max_replays": max_replays,
            "limiter": limiter,
            "history": history,
        }
        group = Group(time.time(), self.consumer)

        def work(snapshot: Snapshot) -> NDArray[np.int64]:
            settings = maintenance.changed_settings(snapshot.settings, **changes)
            return maintenance.reconfigure(snapshot, settings, group)

        evicted = self._session.write(work)
        if strategy is not None or alpha is not None:
            self._strategy = None
        return len(evicted)

    # Learning

    def update(
        self,
        replayed: Batch | Any,
        *,
        loss: Any,
        step: int | None = None,
        on_invalid: Literal["raise", "skip"] = "raise",
    ) -> UpdateResult:
        """Write losses back, and one replay event each, in one commit. A leased batch is released by it.

        Parameters
        ----------
        replayed : Batch or ids
            An id given twice counts as two replays; its last loss stays.
        loss : array or tensor of n, or one number
            Finite and >= 0. A tensor is detached.
        step : int, optional
            The trainer's step, for the history.
        on_invalid : "raise" or "skip"
            What to do with losses that are NaN, infinite or negative: refuse everything, or write the valid ones and
            report the others as ``rejected``.
        """
        drawn = replayed if isinstance(replayed, Batch) else None
        ids = check_ids(replayed) if drawn is None else drawn.ids
        losses = as_losses(loss, len(ids))
        check_option("on_invalid", on_invalid, "raise", "skip")
        if on_invalid == "raise":
            refuse_invalid(losses, ids.tolist())
        valid = ~invalid_losses(losses)
        replay = recording.Replay(ids, losses)
        if drawn is not None:
            replay = replace(replay, probability=drawn.probability, weight=drawn.weight)
        group = Group(
            at=time.time(),
            consumer=self.consumer,
            step=None if step is None else check_int("step", step, minimum=-(2**62)),
            strategy=None if drawn is None else drawn.strategy,
        )
        if not valid.any():
            return UpdateResult(np.empty(0, np.int64), np.empty(0, np.int64), np.unique(ids))
        token = None if drawn is None else drawn.lease

        def work(snapshot: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            if token is not None:
                leases.release(snapshot, token)
            return recording.update(snapshot, group, replay.take(valid))

        updated, missing = self._session.write(work)
        rejected = np.setdiff1d(ids[~valid], ids[valid])
        return UpdateResult(updated, missing, rejected)

    # Transactions, checkpoints, life

    def transaction(self) -> Block[EpisodicMemory]:
        """Make everything inside one commit: episodes, losses, history, checkpoint and the generator's state.

        It holds the buffer's write lock from the start: wrap update and checkpoint in it, not the training step. On an
        exception nothing of the block remains, and ids seen inside are void. Nested blocks are savepoints.

        Raises
        ------
        ForeignTransaction
            When another task of this thread has a block open; also of a block that is to be committed by another thread
            or task than the one that opened it.
        TransactionDead
            At the end of a block that the database, or an interrupt inside one of its calls, has ended.
        """
        return self._session.transaction(self)

    @property
    def transaction_depth(self) -> int:
        """How many ``transaction()`` blocks this thread is in: 0 outside of any."""
        return self._session.database.transaction_depth

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Store a trainer's state with the generator's.

        Replaces the checkpoint of the same name; atomic and durable like every write. Inside ``transaction()`` it
        commits together with the episodes and losses it belongs to.

        Parameters
        ----------
        name : str
        state : dict
            Nested dicts (OrderedDict and Counter too; keys are str, int, float, bool, None or tuples of them), lists
            and tuples of arrays, tensors, numbers, str, bytes and None: ``{"net": net.state_dict(), "optimizer":
            optimizer.state_dict(), "rng": torch.get_rng_state()}``. Each comes back as the type it had. Of two tensors
            that share their storage (tied weights) each comes back with storage of its own.

        Raises
        ------
        PayloadError
            For anything else, naming its place; nothing was written.
        """
        check_name("checkpoint", name)
        packed = list(pack(state))  # before the lock is taken, so that other writers do not wait for it
        del state
        with held_until_done(packed):
            self._session.draw(lambda s, rng: checkpoint.save(s, name, packed, rng, time.time()), write=True)

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """The stored state; the generator goes on where it was then.

        Tensors come back on the CPU, without a graph; where PyTorch is not installed, as arrays (a bfloat16 as the
        float32 of the same values).

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
            "consumer": self._given_consumer,
            "cache_bytes": self._session.cache.max_bytes,
            "seeds": (seeds.entropy, seeds.spawn_key),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        from memstore.opening import reopen

        reopen(self, state)
