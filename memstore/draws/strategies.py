"""How to draw: small frozen classes over a snapshot, one idea each.

Probabilities are handled as base-2 logarithms, for the reason given in ``strata``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from memstore.buffer.settings import StoredStrategy
from memstore.buffer.snapshot import Rows
from memstore.buffer.strata import Floats, Ints
from memstore.config import check_float, check_name
from memstore.draws.arithmetic import log2_sum, power_sum, spread
from memstore.draws.candidates import AgeLaw, AgeSource, LossLaw, LossSource, age_span, listed_places, uniform_places
from memstore.draws.filtered import Drawable
from memstore.draws.rejection import draw
from memstore.draws.strategy import DEFAULT_ALPHA, Strategy
from memstore.errors import ConfigError
from memstore.storage import stored
from memstore.types import ReplayStrategy

MAX_ALPHA = 50.0
"""Far beyond use; above it a row one bucket below its bound has a weight that rounds away in its stratum's sum."""


@dataclass(frozen=True)
class Uniform(Strategy):
    """Every live episode with the same probability. Never scans but as every strategy may."""

    name: ClassVar[str] = ReplayStrategy.UNIFORM.value

    def draw(self, snapshot: Drawable, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        if not snapshot.is_whole:
            return PrioritizedLoss(0.0).draw(snapshot, rng, count, taken, replacement=replacement)
        return snapshot.locate(*uniform_places(snapshot, rng, snapshot.occupied(), count, taken, replacement))

    def log2_probability(self, snapshot: Drawable, rows: Rows, *, exact: bool) -> Floats | None:
        return PrioritizedLoss(0.0).log2_probability(snapshot, rows, exact=exact)

    def log2_importance(self, snapshot: Drawable, rows: Rows) -> tuple[Floats, float]:
        return np.zeros(len(rows)), 0.0

    def parameters(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class PrioritizedLoss(Strategy):
    """Proportional prioritization, P(i) ~ priority(i) ** alpha (Schaul et al. 2016, section 3.3).

    Parameters
    ----------
    alpha : float
        0 is uniform, 1 proportional to ``loss + epsilon``. Where it is neither 0 nor the buffer's, whose sums are
        stored, ``exact_probability`` costs a scan; a draw does not.
    """

    alpha: float = DEFAULT_ALPHA
    name: ClassVar[str] = ReplayStrategy.PRIORITIZED_LOSS.value

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_float("alpha", self.alpha, maximum=MAX_ALPHA))

    def draw(self, snapshot: Drawable, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        source = LossSource(snapshot, self.alpha)
        return draw(source, rng, count, snapshot.live, taken, replacement=replacement)

    def log2_probability(self, snapshot: Drawable, rows: Rows, *, exact: bool) -> Floats | None:
        total = self._log2_total(snapshot, exact)
        return None if total is None else self._log2_weight(snapshot, rows) - total

    def log2_importance(self, snapshot: Drawable, rows: Rows) -> tuple[Floats, float]:
        least = snapshot.smallest_loss()
        smallest = np.array([np.nan if least is None else least])
        law = LossLaw.of(snapshot, self.alpha)
        return self._log2_weight(snapshot, rows), min(float(law.log2_weight(rows.ids[:1], smallest)[0]), 0.0)

    def _log2_weight(self, snapshot: Drawable, rows: Rows) -> Floats:
        return LossLaw.of(snapshot, self.alpha).log2_weight(rows.ids, rows.loss)

    def _log2_total(self, snapshot: Drawable, exact: bool) -> float | None:
        if snapshot.is_whole and self.alpha == 0:
            return float(np.log2(snapshot.live))
        if snapshot.is_whole and self.alpha == snapshot.settings.alpha:
            strata, occupied, top = snapshot.state.strata, snapshot.occupied(), snapshot.state.counters.top_priority
            bound = self.alpha * (strata.log2_bound(occupied, top) - np.log2(top))
            return log2_sum(bound, strata.weight_sum[occupied])
        if exact or snapshot.is_listed:
            return snapshot.population().log2_total(LossLaw.of(snapshot, self.alpha))
        return None

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
        0 is uniform; 1 gives each doubling of age the same share. Where episodes have left between others,
        ``exact_probability`` costs a scan; a draw does not.
    """

    alpha: float = DEFAULT_ALPHA
    name: ClassVar[str] = ReplayStrategy.PRIORITIZED_RECENCY.value

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_float("alpha", self.alpha, maximum=MAX_ALPHA))

    def draw(self, snapshot: Drawable, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        source = AgeSource(snapshot, self.alpha)
        return draw(source, rng, count, snapshot.live, taken, replacement=replacement)

    def log2_probability(self, snapshot: Drawable, rows: Rows, *, exact: bool) -> Floats | None:
        youngest, oldest = age_span(snapshot)
        if snapshot.is_whole and oldest - youngest + 1 == snapshot.live:
            total = float(np.log2(power_sum(youngest, oldest, self.alpha)))
        elif exact or snapshot.is_listed:
            total = snapshot.population().log2_total(AgeLaw.of(snapshot, self.alpha))
        else:
            return None
        return self._log2_weight(snapshot, rows) - total

    def log2_importance(self, snapshot: Drawable, rows: Rows) -> tuple[Floats, float]:
        smallest = -self.alpha * float(np.log2(age_span(snapshot)[1]))
        return self._log2_weight(snapshot, rows), smallest

    def _log2_weight(self, snapshot: Drawable, rows: Rows) -> Floats:
        return AgeLaw.of(snapshot, self.alpha).log2_weight(rows.ids, rows.loss)

    def with_alpha(self, alpha: float) -> Strategy:
        return replace(self, alpha=alpha)

    def parameters(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


@dataclass(frozen=True)
class DomainBalanced(Strategy):
    """Quotas per domain, uniform inside.

    Remainder slots go to a fresh random subset of domains each draw. What a domain is too small to give is spread
    over the others. Behind a condition on more than the domain a draw counts who passes in each, which takes a scan.

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

    def draw(self, snapshot: Drawable, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        strata, occupied = snapshot.state.strata, snapshot.occupied()
        domains, sizes, shares = self._domains(snapshot)
        gone = np.bincount(np.searchsorted(domains, strata.domain[taken.stratum]), minlength=len(domains))
        free = np.where(shares > 0, sizes - gone[: len(domains)], 0)
        quotas = spread(rng, count, shares, np.where(shares > 0, count, 0) if replacement else free)
        if not quotas.any():
            return Rows.none()
        if not snapshot.is_whole:
            some = snapshot.population()
            listed = [
                listed_places(some, rng, d, int(quotas[d]), taken, replacement) for d in np.flatnonzero(quotas).tolist()
            ]
            return snapshot.looked_up(some.ids[np.concatenate(listed)][rng.permutation(int(quotas.sum()))])
        bounds = np.searchsorted(strata.domain[occupied], domains, side="left")
        ends = np.searchsorted(strata.domain[occupied], domains, side="right")
        places = [
            uniform_places(snapshot, rng, occupied[bounds[d] : ends[d]], int(quotas[d]), taken, replacement)
            for d in np.flatnonzero(quotas)
        ]
        order = rng.permutation(int(quotas.sum()))
        stratum, position = (np.concatenate(column) for column in zip(*places, strict=True))
        return snapshot.locate(stratum[order], position[order])

    def log2_probability(self, snapshot: Drawable, rows: Rows, *, exact: bool) -> Floats | None:
        values, _ = self.log2_importance(snapshot, rows)
        return values

    def log2_importance(self, snapshot: Drawable, rows: Rows) -> tuple[Floats, float]:
        domains, sizes, shares = self._domains(snapshot)
        with np.errstate(divide="ignore"):
            each = np.log2(shares / (shares.sum() or 1.0) / sizes)
        at = np.searchsorted(domains, snapshot.state.strata.domain[rows.stratum])
        return each[at], float(each[np.isfinite(each)].min(initial=np.inf))

    def leaves_out(self, snapshot: Drawable) -> bool:
        """Whether some live episodes are never drawn."""
        return not self._domains(snapshot)[2].all()

    def _domains(self, snapshot: Drawable) -> tuple[Ints, Ints, Floats]:
        """Domains that hold something, how much, and the share of each."""
        strata, occupied = snapshot.state.strata, snapshot.occupied()
        if snapshot.is_whole:
            domains, where = np.unique(strata.domain[occupied], return_inverse=True)
            sizes = np.bincount(where, weights=strata.count[occupied], minlength=len(domains)).astype(np.int64)
        else:
            domains, ends, _ = snapshot.population().by_domain()
            sizes = np.diff(ends, prepend=0)
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

    ``probability`` is defined as the share-weighted sum of the components'. With ``beta > 0`` a draw needs it, so it
    scans where a component's ``exact_probability`` would; once for all components.

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

    def draw(self, snapshot: Drawable, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
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

    def log2_probability(self, snapshot: Drawable, rows: Rows, *, exact: bool) -> Floats | None:
        parts = self._probabilities(snapshot, rows, exact=exact)
        return None if parts is None else self._mixture(parts)

    def log2_importance(self, snapshot: Drawable, rows: Rows) -> tuple[Floats, float]:
        parts = self._probabilities(snapshot, rows, exact=True)
        assert parts is not None
        everywhere, somewhere = 0.0, []
        for (part, share), probability in zip(self.components.items(), parts, strict=True):
            # A component's own scale: its probabilities over its importances, the same for every row.
            importance, least = part.log2_importance(snapshot, rows)
            finite = np.flatnonzero(np.isfinite(importance))
            scale = probability[finite[0]] - importance[finite[0]] if len(finite) else 0.0
            smallest = share * float(np.exp2(least + scale))
            if isinstance(part, DomainBalanced) and part.leaves_out(snapshot):
                somewhere.append(smallest)
            else:
                everywhere += smallest
        # What a component leaves out has no probability from it; what is drawn at all has some of one of them.
        return self._mixture(parts), float(np.log2(everywhere or min(somewhere)))

    def _probabilities(self, snapshot: Drawable, rows: Rows, *, exact: bool) -> list[Floats] | None:
        """The components' log2 probabilities; None where one needs a scan and ``exact`` does not ask for it."""
        parts = []
        for part in self.components:
            probability = part.log2_probability(snapshot, rows, exact=exact)
            if probability is None:
                return None
            parts.append(probability)
        return parts

    def _mixture(self, parts: list[Floats]) -> Floats:
        shares = self.components.values()
        mixture: Floats = np.log2(sum(share * np.exp2(part) for share, part in zip(shares, parts, strict=True)))
        return mixture

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


def as_strategy(value: StoredStrategy | str) -> Strategy:
    """A strategy from itself, its name, or its ``ReplayStrategy`` member.

    ``ConfigError`` for an unknown name; nothing falls back silently.
    """
    if isinstance(value, Strategy):
        return value
    name = value.value if isinstance(value, ReplayStrategy) else value
    if not isinstance(name, str) or name not in _BY_NAME:
        raise ConfigError(f"unknown strategy {name if type(name) is str else type(name)!r}; use {', '.join(_BY_NAME)}")
    return _BY_NAME[name]()


def strategy_from_json(text: str) -> Strategy:
    """Inverse of ``Strategy.to_json``."""
    return stored.built("the buffer's strategy", text, _from_dict)


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
