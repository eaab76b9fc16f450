"""How to draw: small frozen classes over a snapshot, one idea each.

Probabilities are handled as base-2 logarithms, for the reason given in ``strata``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from memstore.config import check_float, check_name
from memstore.draws import draw
from memstore.errors import ConfigError
from memstore.shares import log2_sum, power_sum, spread
from memstore.snapshot import Rows, Snapshot
from memstore.sources import AgeSource, LossSource, age_span, uniform_places, uniform_rows
from memstore.strata import Floats, Ints, log2_priority
from memstore.types import ReplayStrategy

DEFAULT_ALPHA = 0.6
MAX_ALPHA = 50.0
"""Far beyond use; above it a row one bucket below its bound has a weight that rounds away in its stratum's sum."""


class Strategy(ABC):
    """A way to draw episodes; values are immutable, comparable, and stored with the buffer as JSON."""

    name: ClassVar[str]

    @abstractmethod
    def draw(self, snapshot: Snapshot, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        """Draw ``count`` rows outside ``taken``, or all that are left when fewer are."""

    @abstractmethod
    def log2_probability(self, snapshot: Snapshot, rows: Rows, *, exact: bool) -> Floats | None:
        """Of the first draw; None where it needs a scan and ``exact`` does not ask for one."""

    @abstractmethod
    def log2_importance(self, snapshot: Snapshot, rows: Rows) -> tuple[Floats, float]:
        """Probability up to a common factor, and the smallest such value over the buffer; never a scan."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """What ``strategy_from_json`` needs to build it again."""

    @property
    def index_alpha(self) -> float:
        """Exponent that the stored weight sums should have for this strategy."""
        return DEFAULT_ALPHA

    def with_alpha(self, alpha: float) -> Strategy:
        """The same strategy with another exponent."""
        raise ConfigError(f"strategy {self.name!r} has no alpha")

    def to_json(self) -> str:
        """As stored in the ``buffer`` row."""
        return json.dumps({"name": self.name, **self.parameters()}, sort_keys=True)


@dataclass(frozen=True)
class Uniform(Strategy):
    """Every live episode with the same probability."""

    name: ClassVar[str] = ReplayStrategy.UNIFORM.value

    def draw(self, snapshot: Snapshot, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        if not snapshot.is_whole:
            return PrioritizedLoss(0.0).draw(snapshot, rng, count, taken, replacement=replacement)
        return snapshot.locate(*uniform_places(snapshot, rng, snapshot.occupied(), count, taken, replacement))

    def log2_probability(self, snapshot: Snapshot, rows: Rows, *, exact: bool) -> Floats | None:
        return PrioritizedLoss(0.0).log2_probability(snapshot, rows, exact=exact)

    def log2_importance(self, snapshot: Snapshot, rows: Rows) -> tuple[Floats, float]:
        return np.zeros(len(rows)), 0.0

    def parameters(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class PrioritizedLoss(Strategy):
    """Proportional prioritization, P(i) ~ priority(i) ** alpha (Schaul et al. 2016, section 3.3).

    Parameters
    ----------
    alpha : float
        0 is uniform, 1 proportional to ``loss + epsilon``.
    """

    alpha: float = DEFAULT_ALPHA
    name: ClassVar[str] = ReplayStrategy.PRIORITIZED_LOSS.value

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_float("alpha", self.alpha, maximum=MAX_ALPHA))

    def draw(self, snapshot: Snapshot, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        source = LossSource(snapshot, self.alpha)
        return draw(source, rng, count, snapshot.live, taken, replacement=replacement)

    def log2_probability(self, snapshot: Snapshot, rows: Rows, *, exact: bool) -> Floats | None:
        total = self._log2_total(snapshot, exact)
        return None if total is None else self._log2_weight(snapshot, rows) - total

    def log2_importance(self, snapshot: Snapshot, rows: Rows) -> tuple[Floats, float]:
        loss, top = snapshot.smallest_loss(), snapshot.state.counters.top_priority
        smallest = np.log2(top if loss is None else min(top, loss + snapshot.settings.epsilon))
        return self._log2_weight(snapshot, rows), self.alpha * float(smallest)

    def _log2_weight(self, snapshot: Snapshot, rows: Rows) -> Floats:
        top = snapshot.state.counters.top_priority
        return self.alpha * log2_priority(rows.loss, snapshot.settings.epsilon, top)

    def _log2_total(self, snapshot: Snapshot, exact: bool) -> float | None:
        if snapshot.is_whole and self.alpha == 0:
            return float(np.log2(snapshot.live))
        if snapshot.is_whole and self.alpha == snapshot.settings.alpha:
            strata, occupied = snapshot.state.strata, snapshot.occupied()
            bound = self.alpha * strata.log2_bound(occupied, snapshot.state.counters.top_priority)
            return log2_sum(bound, strata.weight_sum[occupied])
        return log2_sum(self._log2_weight(snapshot, snapshot.scan())) if exact or snapshot.is_scanned else None

    @property
    def index_alpha(self) -> float:
        return self.alpha

    def with_alpha(self, alpha: float) -> Strategy:
        return replace(self, alpha=alpha)

    def parameters(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


@dataclass(frozen=True)
class PrioritizedRecency(Strategy):
    """The newer the likelier: P ~ age ** -alpha, age 1 for the newest episode, whatever the clocks say.

    Parameters
    ----------
    alpha : float
        0 is uniform; 1 gives each doubling of age the same share.
    """

    alpha: float = DEFAULT_ALPHA
    name: ClassVar[str] = ReplayStrategy.PRIORITIZED_RECENCY.value

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_float("alpha", self.alpha, maximum=MAX_ALPHA))

    def draw(self, snapshot: Snapshot, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        source = AgeSource(snapshot, self.alpha)
        return draw(source, rng, count, snapshot.live, taken, replacement=replacement)

    def log2_probability(self, snapshot: Snapshot, rows: Rows, *, exact: bool) -> Floats | None:
        youngest, oldest = age_span(snapshot)
        if snapshot.is_whole and oldest - youngest + 1 == snapshot.live:
            total = float(np.log2(power_sum(youngest, oldest, self.alpha)))
        elif exact or snapshot.is_scanned:
            total = log2_sum(self._log2_weight(snapshot, snapshot.scan()))
        else:
            return None
        return self._log2_weight(snapshot, rows) - total

    def log2_importance(self, snapshot: Snapshot, rows: Rows) -> tuple[Floats, float]:
        smallest = -self.alpha * float(np.log2(age_span(snapshot)[1]))
        return self._log2_weight(snapshot, rows), smallest

    def _log2_weight(self, snapshot: Snapshot, rows: Rows) -> Floats:
        return -self.alpha * np.log2(snapshot.age(rows.ids))

    def with_alpha(self, alpha: float) -> Strategy:
        return replace(self, alpha=alpha)

    def parameters(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


@dataclass(frozen=True)
class DomainBalanced(Strategy):
    """Quotas per domain, uniform inside.

    Remainder slots go to a fresh random subset of domains each draw. What a domain is too small to give is spread
    over the others.

    Parameters
    ----------
    weights : mapping of domain name to share, optional
        Default: equal shares for all domains. A domain left out of the mapping is not drawn; that no weighted domain
        holds an episode is an error, and behind a condition there is nothing to draw then.
    """

    weights: Mapping[str, float] | None = None
    name: ClassVar[str] = ReplayStrategy.DOMAIN_BALANCED.value

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if not isinstance(self.weights, Mapping):
            raise ConfigError(f"weights maps domain names to shares, got a {type(self.weights).__name__}")
        weights = {check_name("domain", d): check_float(f"weight of {d!r}", w) for d, w in self.weights.items()}
        if not any(weights.values()):
            raise ConfigError("DomainBalanced needs at least one domain with a positive weight")
        object.__setattr__(self, "weights", weights)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def draw(self, snapshot: Snapshot, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        strata, occupied = snapshot.state.strata, snapshot.occupied()
        domains, sizes, shares = self._domains(snapshot)
        gone = np.bincount(np.searchsorted(domains, strata.domain[taken.stratum]), minlength=len(domains))
        free = np.where(shares > 0, sizes - gone[: len(domains)], 0)
        quotas = spread(rng, count, shares, np.where(shares > 0, count, 0) if replacement else free)
        if not quotas.any():
            return Rows.none()
        if not snapshot.is_whole:
            rows = snapshot.scan()
            own = [rows.take(strata.domain[rows.stratum] == d) for d in domains.tolist()]
            parts = [uniform_rows(rng, own[d], int(quotas[d]), taken, replacement) for d in np.flatnonzero(quotas)]
            return snapshot.complete(Rows.join(parts).take(rng.permutation(int(quotas.sum()))))
        bounds = np.searchsorted(strata.domain[occupied], domains, side="left")
        ends = np.searchsorted(strata.domain[occupied], domains, side="right")
        places = [
            uniform_places(snapshot, rng, occupied[bounds[d] : ends[d]], int(quotas[d]), taken, replacement)
            for d in np.flatnonzero(quotas)
        ]
        order = rng.permutation(int(quotas.sum()))
        stratum, position = (np.concatenate(column) for column in zip(*places, strict=True))
        return snapshot.locate(stratum[order], position[order])

    def log2_probability(self, snapshot: Snapshot, rows: Rows, *, exact: bool) -> Floats | None:
        values, _ = self.log2_importance(snapshot, rows)
        return values

    def log2_importance(self, snapshot: Snapshot, rows: Rows) -> tuple[Floats, float]:
        domains, sizes, shares = self._domains(snapshot)
        with np.errstate(divide="ignore"):
            each = np.log2(shares / (shares.sum() or 1.0) / sizes)
        at = np.searchsorted(domains, snapshot.state.strata.domain[rows.stratum])
        return each[at], float(each[np.isfinite(each)].min(initial=np.inf))

    def leaves_out(self, snapshot: Snapshot) -> bool:
        """Whether some live episodes are never drawn."""
        return not self._domains(snapshot)[2].all()

    def _domains(self, snapshot: Snapshot) -> tuple[Ints, Ints, Floats]:
        """Domains that hold something, how much, and the share of each."""
        strata, occupied = snapshot.state.strata, snapshot.occupied()
        if snapshot.is_whole:
            domains, where = np.unique(strata.domain[occupied], return_inverse=True)
            sizes = np.bincount(where, weights=strata.count[occupied], minlength=len(domains)).astype(np.int64)
        else:
            domains, sizes = np.unique(strata.domain[snapshot.scan().stratum], return_counts=True)
        if self.weights is None:
            return domains, sizes, np.ones(len(domains))
        names = snapshot.state.domain_names
        shares = np.array([self.weights.get(names[d - 1], 0.0) for d in domains.tolist()])
        if len(domains) and not shares.any() and not snapshot.is_filtered:
            raise ConfigError(f"none of the weighted domains {sorted(self.weights)} holds an episode")
        return domains, sizes, shares

    def parameters(self) -> dict[str, Any]:
        return {"weights": self.weights}


@dataclass(frozen=True)
class Mixed(Strategy):
    """Shares of the batch by different strategies; no episode twice.

    ``probability`` is defined as the share-weighted sum of the components'.

    Parameters
    ----------
    shares : mapping of strategy (or its name) to share, optional
        Default: half ``PrioritizedLoss()``, half ``Uniform()``. Drawn in the order given; slots that do not divide
        evenly are randomised, so that every share holds on average.
    """

    shares: Mapping[Strategy | str, float] = field(default_factory=lambda: {PrioritizedLoss(): 0.5, Uniform(): 0.5})
    name: ClassVar[str] = ReplayStrategy.MIXED.value

    def __post_init__(self) -> None:
        if not isinstance(self.shares, Mapping):
            raise ConfigError(f"shares maps strategies to their shares, got a {type(self.shares).__name__}")
        shares = {as_strategy(s): check_float(f"share of {s}", v, exclusive=True) for s, v in self.shares.items()}
        if not shares:
            raise ConfigError("Mixed needs at least one strategy")
        if any(isinstance(s, Mixed) for s in shares):
            raise ConfigError("Mixed cannot contain Mixed; multiply the shares out")
        total = sum(shares.values())
        object.__setattr__(self, "shares", {s: v / total for s, v in shares.items()})

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def components(self) -> dict[Strategy, float]:
        """The strategies and their shares, which sum to 1."""
        return {as_strategy(s): share for s, share in self.shares.items()}

    def draw(self, snapshot: Snapshot, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        parts = list(self.components)
        shares = np.array(list(self.components.values()))
        slots = spread(rng, count, shares, np.full(len(parts), count))
        drawn = Rows.none()
        # A second pass, over all components in the same order, fills what one of them could not give.
        for part, slot in [*zip(parts, slots.tolist(), strict=True), *((part, count) for part in parts)]:
            wanted = min(slot, count - len(drawn))
            if wanted > 0:
                avoid = taken if replacement else Rows.join([taken, drawn])
                drawn = Rows.join([drawn, part.draw(snapshot, rng, wanted, avoid, replacement=replacement)])
        return drawn

    def log2_probability(self, snapshot: Snapshot, rows: Rows, *, exact: bool) -> Floats | None:
        total = np.zeros(len(rows))
        for part, share in self.components.items():
            probability = part.log2_probability(snapshot, rows, exact=exact)
            if probability is None:
                return None
            total += share * np.exp2(probability)
        return np.log2(total)

    def log2_importance(self, snapshot: Snapshot, rows: Rows) -> tuple[Floats, float]:
        values = self.log2_probability(snapshot, rows, exact=True)
        assert values is not None
        everywhere, somewhere = 0.0, []
        for part, share in self.components.items():
            # A component's own scale: its probabilities over its importances, the same for every row.
            importance, least = part.log2_importance(snapshot, rows)
            probability = part.log2_probability(snapshot, rows, exact=True)
            assert probability is not None
            finite = np.flatnonzero(np.isfinite(importance))
            scale = probability[finite[0]] - importance[finite[0]] if len(finite) else 0.0
            smallest = share * float(np.exp2(least + scale))
            if isinstance(part, DomainBalanced) and part.leaves_out(snapshot):
                somewhere.append(smallest)
            else:
                everywhere += smallest
        # What a component leaves out has no probability from it; what is drawn at all has some of one of them.
        return values, float(np.log2(everywhere or min(somewhere)))

    @property
    def index_alpha(self) -> float:
        return next((s.alpha for s in self.components if isinstance(s, PrioritizedLoss)), DEFAULT_ALPHA)

    def with_alpha(self, alpha: float) -> Strategy:
        return Mixed({s.with_alpha(alpha) if hasattr(s, "alpha") else s: v for s, v in self.components.items()})

    def parameters(self) -> dict[str, Any]:
        return {"shares": [[json.loads(s.to_json()), share] for s, share in self.components.items()]}


_BY_NAME: dict[str, type[Strategy]] = {
    cls.name: cls for cls in (Uniform, PrioritizedLoss, PrioritizedRecency, Mixed, DomainBalanced)
}


def as_strategy(value: Strategy | str) -> Strategy:
    """A strategy from itself, its name, or its ``ReplayStrategy`` member.

    Raises
    ------
    ConfigError
        For an unknown name; nothing falls back silently.
    """
    if isinstance(value, Strategy):
        return value
    name = value.value if isinstance(value, ReplayStrategy) else value
    if not isinstance(name, str) or name not in _BY_NAME:
        raise ConfigError(f"unknown strategy {name if type(name) is str else type(name)!r}; use {', '.join(_BY_NAME)}")
    return _BY_NAME[name]()


def strategy_from_json(text: str) -> Strategy:
    """Inverse of ``Strategy.to_json``."""
    return _from_dict(json.loads(text))


def _from_dict(document: dict[str, Any]) -> Strategy:
    name = document.pop("name")
    if name == Mixed.name:
        document["shares"] = {_from_dict(part): share for part, share in document["shares"]}
    return _BY_NAME[name](**document)


__all__ = [
    "DomainBalanced",
    "Mixed",
    "PrioritizedLoss",
    "PrioritizedRecency",
    "Strategy",
    "Uniform",
    "as_strategy",
    "strategy_from_json",
]
