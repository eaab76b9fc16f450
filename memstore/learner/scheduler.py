"""The rule that decides when a learner consolidates: a trigger, and limits on the time between consolidations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from memstore.config import check_float, check_int
from memstore.errors import ConfigError, InvalidValue
from memstore.learner.stored import exact_fields, refuse_damaged

IMPROVEMENT = 0.9
"""`LossThreshold` asks for another consolidation only below this share of the loss at the last one."""


@dataclass(frozen=True, slots=True)
class ExampleCount:
    """Consolidate after this many new examples."""

    examples: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", check_int("examples", self.examples, minimum=1))


@dataclass(frozen=True, slots=True)
class BatchCount:
    """Consolidate after this many learning calls."""

    batches: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", check_int("batches", self.batches, minimum=1))


@dataclass(frozen=True, slots=True)
class BufferThreshold:
    """Consolidate when the memory becomes this full, in percent of its capacity.

    That happens once at every crossing. After a consolidation, the memory must first become less full again.
    """

    percent: float = 80.0

    def __post_init__(self) -> None:
        percent = check_float("percent", self.percent, maximum=100.0, exclusive=True)
        object.__setattr__(self, "percent", percent)

    def reached(self, fill: float) -> bool:
        """Return True if a memory filled to this share, 0 to 1, has reached the threshold."""
        # A division rounds in the same way as the share was rounded. A multiplication does not: 100 * 0.29 is below 29.
        return fill >= self.percent / 100


@dataclass(frozen=True, slots=True)
class LossThreshold:
    """Consolidate when the running average of the loss is below this, and below 0.9 times its value at the last one."""

    loss: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", check_float("loss", self.loss, exclusive=True))


@dataclass(frozen=True, slots=True)
class Manual:
    """Never consolidate by itself. Only a call of ``learner.consolidate()`` does."""


ConsolidationTrigger = ExampleCount | BatchCount | BufferThreshold | LossThreshold | Manual
"""A trigger is the event that asks for a consolidation."""

_TRIGGERS: dict[str, type[Any]] = {
    "example_count": ExampleCount,
    "batch_count": BatchCount,
    "buffer_threshold": BufferThreshold,
    "loss_threshold": LossThreshold,
    "manual": Manual,
}
"""The triggers are stored under these names."""


@dataclass(frozen=True, slots=True)
class ConsolidationScheduler:
    """A rule: a trigger, and the least and largest number of new examples between two consolidations.

    Parameters
    ----------
    trigger : ConsolidationTrigger
        The event that asks for a consolidation.
    min_interval, max_interval : int or None
        With fewer new examples than ``min_interval`` since the last consolidation, there is no other one. After
        ``max_interval`` new examples there is one without the trigger. None: 100 and 10,000 for the triggers that look
        at a state (`BufferThreshold`, `LossThreshold`), and no limit for those that count. `Manual` ignores both.

    Raises
    ------
    ConfigError
        A number is out of range, or the trigger's count is not between the two intervals.
    """

    trigger: ConsolidationTrigger = ExampleCount()
    min_interval: int | None = None
    max_interval: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.trigger, ConsolidationTrigger):
            raise ConfigError(f"trigger must be one of {', '.join(_TRIGGERS)}, got {self.trigger!r}")
        for name in ("min_interval", "max_interval"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_int(name, getattr(self, name), minimum=1))
        least, most = self.intervals
        if least > most:
            raise ConfigError(f"min_interval {least} is above max_interval {most}; set both")
        if isinstance(self.trigger, ExampleCount) and not least <= self.trigger.examples <= most:
            raise ConfigError(
                f"a consolidation every {self.trigger.examples} examples is outside the intervals {least} .. {most}"
            )

    @property
    def intervals(self) -> tuple[float, float]:
        """Least and largest number of new examples between two consolidations."""
        by_state = isinstance(self.trigger, (BufferThreshold, LossThreshold))
        least, most = (100, 10_000) if by_state else (0, math.inf)
        return self.min_interval or least, self.max_interval or most

    @property
    def watches_buffer(self) -> bool:
        """True if the rule depends on the filled share of the memory."""
        return isinstance(self.trigger, BufferThreshold)

    def due(self, state: SchedulerState, *, loss: float | None) -> bool:
        """Return True if it is time to consolidate.

        Parameters
        ----------
        state : SchedulerState
            The events since the last consolidation.
        loss : float or None
            The learner's running average of the loss. None if it is unknown.
        """
        least, most = self.intervals
        if isinstance(self.trigger, Manual) or state.examples_since < least:
            return False
        if state.examples_since >= most:
            return True
        match self.trigger:
            case ExampleCount(examples):
                return state.examples_since >= examples
            case BatchCount(batches):
                return state.batches_since >= batches
            case BufferThreshold():
                return state.crossed
            case LossThreshold(threshold):
                last = math.inf if state.last_loss is None else state.last_loss
                return loss is not None and loss < min(threshold, IMPROVEMENT * last)

    def after_batch(
        self, state: SchedulerState, examples: int, fill: float = 0.0, *, before: float | None = None
    ) -> SchedulerState:
        """Return the state after a learning call.

        Parameters
        ----------
        state : SchedulerState
            The state before the call.
        examples : int
            New examples that the call learned.
        fill : float
            Filled share of the memory after the call, 0 to 1. It is needed only if `watches_buffer` is True.
        before : float, optional
            Filled share of the memory before the call. Without it the rule cannot notice that the last consolidation
            emptied the memory below the threshold, if this call fills it again.

        Raises
        ------
        InvalidValue
            A number is negative or not finite.
        """
        fills = [fill] if before is None else [before, fill]
        if not all(math.isfinite(value) and value >= 0 for value in (examples, *fills)):
            raise InvalidValue(f"examples and fill must be finite and >= 0, got {examples!r}, {fills!r}")
        reached = [isinstance(self.trigger, BufferThreshold) and self.trigger.reached(value) for value in fills]
        armed, full = state.armed or not all(reached), reached[-1]
        return replace(
            state,
            examples_since=state.examples_since + examples,
            batches_since=state.batches_since + 1,
            armed=armed,
            crossed=full and armed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as scalars, with the name of its trigger."""
        names = {kind: name for name, kind in _TRIGGERS.items()}
        intervals = {"min_interval": self.min_interval, "max_interval": self.max_interval}
        return {"trigger": names[type(self.trigger)], **asdict(self.trigger), **intervals}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConsolidationScheduler:
        """Return the rule that `to_dict` wrote.

        Raises
        ------
        ConfigError
            There is no such trigger, or a setting is missing, unknown or invalid.
        """
        name = values.get("trigger") if isinstance(values, Mapping) else values
        if not isinstance(name, str) or name not in _TRIGGERS:
            raise ConfigError(f"trigger must be one of {', '.join(_TRIGGERS)}, got {name!r}")
        own = [item.name for item in fields(_TRIGGERS[name])]
        names = ["trigger", *own, "min_interval", "max_interval"]
        if values.keys() != set(names):
            raise ConfigError(f"a scheduler by {name} has exactly the settings {', '.join(names)}, got {values!r}")
        trigger = _TRIGGERS[name](**{key: values[key] for key in own})
        return cls(trigger, values["min_interval"], values["max_interval"])


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """The events since the last consolidation.

    Attributes
    ----------
    examples_since, batches_since : int
        New examples, and learning calls.
    last_loss : float or None
        The learner's running average of the loss at the last consolidation. None before the first.
    armed : bool
        True if the memory was below the threshold of `BufferThreshold` since then.
    crossed : bool
        True if the memory reached the threshold from below, and no consolidation has followed yet.
    """

    examples_since: int = 0
    batches_since: int = 0
    last_loss: float | None = None
    armed: bool = True
    crossed: bool = False

    def after_consolidation(self, loss: float | None) -> SchedulerState:
        """Return the state after a consolidation at this running average of the loss. None stands for an unknown one.

        Raises
        ------
        InvalidValue
            The loss is NaN, infinite or negative.
        """
        try:
            return SchedulerState(last_loss=None if loss is None else check_float("loss", loss), armed=False)
        except ConfigError as error:
            raise InvalidValue(str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as scalars."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SchedulerState:
        """Return the state that `to_dict` wrote.

        Raises
        ------
        InvalidValue
            A field is missing, unknown, of another type or out of range.
        """
        state = cls(**exact_fields(cls, values, "state of the scheduler"))
        with refuse_damaged("state of the scheduler"):
            check_int("examples_since", state.examples_since, minimum=0)
            check_int("batches_since", state.batches_since, minimum=0)
            if state.last_loss is not None:
                check_float("last_loss", state.last_loss)
            if not (isinstance(state.armed, bool) and isinstance(state.crossed, bool)):
                raise ConfigError(f"armed and crossed must be True or False, got {state.armed!r} and {state.crossed!r}")
        return state
