"""Levels of difficulty. The losses decide when the learner goes to the next level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from memstore.config import check_float, check_int
from memstore.errors import ConfigError, InvalidValue
from memstore.learner.example import MAX_LEVEL, MIN_LEVEL
from memstore.learner.stored import exact_fields, refuse_damaged

MAX_SPAN = 10**9
"""``min_examples_before_advance`` is at most this. Above it, the decay of the running mean would round to 1."""


@dataclass(frozen=True, slots=True)
class CurriculumConfig:
    """The rule that decides when the learner goes to the next level, and when it goes back.

    Parameters
    ----------
    start_level, max_level : int
        First and last level, 1 to 7.
    examples_per_level : int or None
        The next level begins after this many examples of a level, with any losses. None: the losses alone decide.
    advance_loss_threshold : float or None
        The next level also begins when the running mean of the level's losses is below this. None: the count alone
        decides.
    min_examples_before_advance : int
        Examples of a level before its running mean decides anything. This is also the span of that mean.
    allow_regression : bool
        True if a mean above ``regression_threshold`` leads back to the level before.
    regression_threshold : float
        Loss above which the level before begins again.

    Raises
    ------
    ConfigError
        A setting is out of range, or two contradict each other.
    """

    start_level: int = MIN_LEVEL
    max_level: int = MAX_LEVEL
    examples_per_level: int | None = 500
    advance_loss_threshold: float | None = 0.1
    min_examples_before_advance: int = 100
    allow_regression: bool = False
    regression_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("start_level", "max_level"):
            self._set(name, check_int(name, getattr(self, name), minimum=MIN_LEVEL, maximum=MAX_LEVEL))
        if self.start_level > self.max_level:
            raise ConfigError(f"start_level {self.start_level} is above max_level {self.max_level}; swap them")
        least = check_int("min_examples_before_advance", self.min_examples_before_advance, minimum=1, maximum=MAX_SPAN)
        self._set("min_examples_before_advance", least)
        if self.examples_per_level is not None:
            self._set("examples_per_level", check_int("examples_per_level", self.examples_per_level, minimum=1))
            if self.examples_per_level < least:
                raise ConfigError(
                    f"examples_per_level {self.examples_per_level} is below min_examples_before_advance {least}, so no "
                    "loss would decide anything; raise the first or lower the second"
                )
        if not isinstance(self.allow_regression, bool):
            raise ConfigError(f"allow_regression must be True or False, got {self.allow_regression!r}")
        self._set("regression_threshold", check_float("regression_threshold", self.regression_threshold))
        if self.advance_loss_threshold is not None:
            self._set("advance_loss_threshold", check_float("advance_loss_threshold", self.advance_loss_threshold))
            if self.allow_regression and self.regression_threshold <= self.advance_loss_threshold:
                raise ConfigError(
                    f"regression_threshold {self.regression_threshold:g} must be above advance_loss_threshold "
                    f"{self.advance_loss_threshold:g}"
                )

    @classmethod
    def default(cls) -> CurriculumConfig:
        """Return at most 500 examples a level, fewer when the mean loss is below 0.1."""
        return cls()

    @classmethod
    def fast(cls) -> CurriculumConfig:
        """Return at most 200 examples a level, fewer when the mean loss is below 0.2."""
        return cls(examples_per_level=200, advance_loss_threshold=0.2, min_examples_before_advance=50)

    @classmethod
    def thorough(cls) -> CurriculumConfig:
        """Return at most 1,000 examples a level, fewer when the mean loss is below 0.05."""
        return cls(examples_per_level=1000, advance_loss_threshold=0.05, min_examples_before_advance=500)

    @classmethod
    def with_levels(cls, start_level: int, max_level: int) -> CurriculumConfig:
        """Return the default settings with these two levels. A level outside 1 .. 7 is moved to the nearer end.

        Raises
        ------
        ConfigError
            A level is not an integer, or the start is above the end.
        """
        start = check_int("start_level", start_level, minimum=-(2**62))
        top = check_int("max_level", max_level, minimum=-(2**62))
        return cls(start_level=min(max(start, MIN_LEVEL), MAX_LEVEL), max_level=min(max(top, MIN_LEVEL), MAX_LEVEL))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as scalars."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CurriculumConfig:
        """Return the settings that `to_dict` wrote.

        Raises
        ------
        ConfigError
            A setting is missing, unknown or invalid.
        """
        names = {item.name for item in fields(cls)}
        if not isinstance(values, Mapping) or values.keys() != names:
            raise ConfigError(f"a curriculum has exactly the settings {', '.join(sorted(names))}, got {values!r}")
        return cls(**values)

    def _set(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class CurriculumState:
    """A learner's place in the curriculum.

    Attributes
    ----------
    current_level : int
    examples_at_level : int
        Examples of this level learned since it began.
    avg_loss_at_level : float or None
        Running mean of their losses. It is exponential, with decay ``1 - 1 / min_examples_before_advance``, and free of
        start-up bias. None before the first example.
    best_loss_at_level : float or None
        Lowest running mean after at least ``min_examples_before_advance`` examples, so that all compared means span
        equally many.
    advancements, regressions : int
        Numbers of times that the level went up and down.
    """

    current_level: int
    examples_at_level: int = 0
    avg_loss_at_level: float | None = None
    best_loss_at_level: float | None = None
    advancements: int = 0
    regressions: int = 0

    @classmethod
    def start(cls, config: CurriculumConfig) -> CurriculumState:
        """Return the state before the first example."""
        return cls(config.start_level)

    def after(self, config: CurriculumConfig, losses: Sequence[float]) -> CurriculumState:
        """Return the state after these losses of new examples of the current level, in their order.

        If the level changes among them, the remaining losses count for neither level, because their examples were of
        the level before.

        Raises
        ------
        InvalidValue
            Any of the losses is NaN, infinite or negative, or the level is not one of ``config``.
        """
        if not config.start_level <= self.current_level <= config.max_level:
            raise InvalidValue(
                f"level {self.current_level} is not one of this curriculum, {config.start_level} .. "
                f"{config.max_level}; begin with CurriculumState.start"
            )
        try:
            checked = [check_float("a loss", loss) for loss in losses]
        except ConfigError as error:
            raise InvalidValue(str(error)) from None
        state = self
        for loss in checked:
            state = state._count_loss(loss, config.min_examples_before_advance)
            level = state._next_level(config)
            if level != state.current_level:
                return CurriculumState(
                    level,
                    advancements=state.advancements + (level > state.current_level),
                    regressions=state.regressions + (level < state.current_level),
                )
        return state

    def _count_loss(self, loss: float, span: int) -> CurriculumState:
        count = self.examples_at_level + 1
        decay = 1 - 1 / span
        share = (1 - decay) / (1 - decay**count)
        before = loss if self.avg_loss_at_level is None else self.avg_loss_at_level
        # This is a step towards the loss, not a weighted sum. So the mean of equal losses is exactly that loss.
        average = before + (loss - before) * share
        best = self.best_loss_at_level
        if count >= span:
            best = average if best is None else min(best, average)
        return replace(self, examples_at_level=count, avg_loss_at_level=average, best_loss_at_level=best)

    def _next_level(self, config: CurriculumConfig) -> int:
        count, average = self.examples_at_level, self.avg_loss_at_level
        low, most = config.advance_loss_threshold, config.examples_per_level
        if average is not None and count >= config.min_examples_before_advance:
            high = config.allow_regression and average > config.regression_threshold
            if high and self.current_level > config.start_level:
                return self.current_level - 1
            if low is not None and average < low:
                return min(self.current_level + 1, config.max_level)
        if most is not None and count >= most:
            return min(self.current_level + 1, config.max_level)
        return self.current_level

    def to_dict(self) -> dict[str, Any]:
        """Return the state as scalars."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CurriculumState:
        """Return the state that `to_dict` wrote.

        Raises
        ------
        InvalidValue
            A field is missing, unknown, of another type or out of range, or two contradict each other.
        """
        state = cls(**exact_fields(cls, values, "state of the curriculum"))
        average, best = state.avg_loss_at_level, state.best_loss_at_level
        with refuse_damaged("state of the curriculum"):
            check_int("current_level", state.current_level, minimum=MIN_LEVEL, maximum=MAX_LEVEL)
            for name in ("examples_at_level", "advancements", "regressions"):
                check_int(name, values[name], minimum=0)
            for name in ("avg_loss_at_level", "best_loss_at_level"):
                if values[name] is not None:
                    check_float(name, values[name])
            if (average is None) != (state.examples_at_level == 0):
                raise ConfigError(f"{state.examples_at_level} examples cannot have the mean loss {average!r}")
            if best is not None and (average is None or best > average):
                raise ConfigError(f"the best mean {best!r} cannot be above the present one, {average!r}")
        return state
