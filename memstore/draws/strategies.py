"""The five strategies: uniform, by loss, by recency, balanced over domains, and mixtures of these."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np

from memstore.buffer.blocks.slots import Floats, Ints
from memstore.buffer.settings import StoredStrategy
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.config import check_float, check_name
from memstore.draws.arithmetic import spread
from memstore.draws.laws import AgeLaw, Law, LossLaw
from memstore.draws.pool import Pool, Request
from memstore.draws.strategy import DEFAULT_ALPHA, Odds
from memstore.draws.strategy import Strategy as Strategy  # for those who import it from here
from memstore.draws.weighted import SCAN_SHARE
from memstore.errors import ConfigError
from memstore.queries.columns import EVERY
from memstore.storage import stored
from memstore.types import ReplayStrategy
from memstore.values.shown import shown

MAX_ALPHA = 50.0
"""An exponent is at most this, which is far above any useful one.

Above it, sums lose the weight of a row that stands one bucket below its bound, by rounding.
"""

LEAST = float(np.nextafter(0, 1))
"""This is the smallest probability that a float can hold."""


@dataclass(frozen=True)
class Uniform(Strategy):
    """Draws every live episode with the same probability, ``P(i) = 1 / n`` for ``n`` live episodes.

    It looks at all episodes only behind a condition; see ``Strategy``.
    """

    name: ClassVar[str] = ReplayStrategy.UNIFORM.value

    def choose(self, pool: Pool, request: Request) -> Ints:
        return pool.draw_evenly(request)

    def odds(self, pool: Pool, episodes: Rows, *, exact: bool, weighted: bool) -> Odds:
        return Odds(np.zeros(len(episodes)), float(np.log2(pool.live)), 0.0)


@dataclass(frozen=True)
class _ByLaw(Strategy):
    """Draws in proportion to the weights of a law with an exponent."""

    alpha: float = DEFAULT_ALPHA

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_float("alpha", self.alpha, maximum=MAX_ALPHA))

    @abstractmethod
    def law(self, snapshot: Snapshot) -> Law:
        """Return the law in this snapshot."""

    def choose(self, pool: Pool, request: Request) -> Ints:
        return pool.draw(self.law(pool.snapshot), request)

    def odds(self, pool: Pool, episodes: Rows, *, exact: bool, weighted: bool) -> Odds:
        law = self.law(pool.snapshot)
        least = pool.log2_least(law) if weighted else np.nan
        # A draw of this share has looked at all episodes anyway.
        exact = exact or len(episodes) * SCAN_SHARE >= pool.live
        return Odds(law.log2_weight(episodes.ids, episodes.loss), pool.log2_total(law, exact=exact), least)

    def with_alpha(self, alpha: float) -> Self:
        return replace(self, alpha=alpha)


@dataclass(frozen=True)
class PrioritizedLoss(_ByLaw):
    """Draws by the last loss: proportional prioritization (Schaul et al. 2016, "Prioritized experience replay", 3.3).

    The priority of an episode is ``p_i = loss_i + epsilon``, with the ``epsilon`` of the buffer. An episode that was
    never measured has the largest priority ever measured in the buffer, 1.0 before any. Then::

        P(i) = p_i ** alpha / sum_k(p_k ** alpha)             (section 3.3, equation 1)
        w_i  = (P(i) / P_min) ** -beta                        (section 3.4)

    ``w_i`` is the importance weight of ``sample(..., beta=...)``. The ``(N P(i)) ** -beta`` of the paper, divided by
    its maximum, is the same number.

    Parameters
    ----------
    alpha : float
        In [0, 50]. 0 draws uniformly, 1 draws in proportion to ``loss + epsilon``. The sums for the buffer's own alpha
        are stored. The first draw with another alpha looks at all episodes; see ``Strategy``.

    Raises
    ------
    ConfigError
        ``alpha`` is not a number in its range.
    """

    name: ClassVar[str] = ReplayStrategy.PRIORITIZED_LOSS.value

    def law(self, snapshot: Snapshot) -> LossLaw:
        return LossLaw.of(snapshot, self.alpha)

    @property
    def index_alpha(self) -> float:
        return self.alpha


@dataclass(frozen=True)
class PrioritizedRecency(_ByLaw):
    """Draws newer episodes more often: ``P(i) = age_i ** -alpha / sum_k(age_k ** -alpha)``.

    The age counts insertions, and no clock: the newest episode has age 1.

    Parameters
    ----------
    alpha : float
        In [0, 50]. 0 draws uniformly, 1 gives each doubling of age the same share. If an episode has left between two
        that are live, ``exact_probability`` looks at all episodes. The draw itself does not.

    Raises
    ------
    ConfigError
        ``alpha`` is not a number in its range.
    """

    name: ClassVar[str] = ReplayStrategy.PRIORITIZED_RECENCY.value

    def law(self, snapshot: Snapshot) -> AgeLaw:
        return AgeLaw.of(snapshot, self.alpha)


@dataclass(frozen=True)
class DomainBalanced(Strategy):
    """Draws a quota of each domain, and draws uniformly inside a domain.

    ``P(i) = share(d) / n(d)`` for an episode of domain ``d`` with ``n(d)`` live episodes; the shares sum to 1. Each
    draw gives the remaining slots to a new random subset of the domains. If a domain is too small for its quota, the
    other domains share the rest of the quota. The first draw with a condition on more than the domain looks at all
    episodes, to count the passing ones of each domain.

    Parameters
    ----------
    weights : mapping of domain name to share, optional
        Default: equal shares for all domains. A domain that is not in the mapping is not drawn. If no domain in the
        mapping holds an episode, a draw raises ``ConfigError``, and with a condition ``MemoryEmpty``.

    Raises
    ------
    ConfigError
        ``weights`` is not a mapping of names to numbers that are finite and at least 0, or all of them are 0.

    Examples
    --------
    >>> batch = memory.sample(64, strategy=DomainBalanced({"math": 2, "code": 1}))
    """

    weights: Mapping[str, float] | None = None
    name: ClassVar[str] = ReplayStrategy.DOMAIN_BALANCED.value

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if not isinstance(self.weights, Mapping):
            raise ConfigError(f"weights must map domain names to shares, got a {type(self.weights).__name__}")
        weights = {check_name("domain", d): check_float(f"weight of {d!r}", w) for d, w in self.weights.items()}
        if not any(weights.values()):
            raise ConfigError("DomainBalanced needs at least one domain with a positive weight")
        object.__setattr__(self, "weights", weights)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def choose(self, pool: Pool, request: Request) -> Ints:
        domains, _, shares = self._domains(pool)
        return pool.draw_balanced(request, domains, shares)

    def odds(self, pool: Pool, episodes: Rows, *, exact: bool, weighted: bool) -> Odds:
        domains, sizes, shares = self._domains(pool)
        with np.errstate(divide="ignore"):
            each = np.log2(shares / (shares.sum() or 1.0) / sizes)
        least = float(each[np.isfinite(each)].min(initial=np.inf))
        return Odds(each[np.searchsorted(domains, episodes.domain)], 0.0, least, leaves_out=not shares.all())

    def _domains(self, pool: Pool) -> tuple[Ints, Ints, Floats]:
        """Return the domains that hold episodes, how many each holds, and the share of each."""
        domains, sizes = pool.domains()
        if self.weights is None:
            return domains, sizes, np.ones(len(domains))
        names = pool.snapshot.state.domain_names
        shares = np.array([self.weights.get(names[d - 1], 0.0) for d in domains.tolist()])
        if len(domains) and not shares.any() and pool.condition == EVERY:
            raise ConfigError(f"none of the weighted domains {sorted(self.weights)} holds an episode")
        return domains, sizes, shares


@dataclass(frozen=True)
class Mixed(Strategy):
    """Draws shares of the batch by different strategies. Without replacement no episode is drawn twice.

    The probability of an episode is defined as ``P(i) = sum_c(share_c * P_c(i))`` over the components ``c``. A draw
    with ``beta > 0`` needs this probability. It scans if ``exact_probability`` of some component needs a scan, once
    for all components. ``probability`` is then known too.

    Parameters
    ----------
    shares : mapping of strategy (or its name) to share, optional
        Default: half ``PrioritizedLoss()``, half ``Uniform()``. The shares are scaled to the sum 1. The components draw
        in the given order. Slots that do not divide evenly are randomised, so every share holds on average.

    Raises
    ------
    ConfigError
        ``shares`` is not a mapping of strategies to numbers above 0, is empty, or contains a ``Mixed``.

    Examples
    --------
    >>> batch = memory.sample(64, strategy=Mixed({"prioritized_loss": 3, "uniform": 1}))
    """

    shares: Mapping[Strategy | str, float] = field(default_factory=lambda: {PrioritizedLoss(): 0.5, Uniform(): 0.5})
    name: ClassVar[str] = ReplayStrategy.MIXED.value

    def __post_init__(self) -> None:
        if not isinstance(self.shares, Mapping):
            raise ConfigError(f"shares must map strategies to their shares, got a {type(self.shares).__name__}")
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

    def choose(self, pool: Pool, request: Request) -> Ints:
        parts, count = list(self.components), request.count
        slots = spread(request.rng, count, np.array(list(self.components.values())), np.full(len(parts), count))
        drawn = np.empty(0, np.int64)
        # A second pass over all components, in the same order, fills the slots that some component could not fill.
        for part, slot in [*zip(parts, slots.tolist(), strict=True), *((part, count) for part in parts)]:
            wanted = min(slot, count - len(drawn))
            if wanted > 0:
                drawn = np.concatenate([drawn, part.choose(pool, request.after(drawn, wanted))])
        return drawn

    def odds(self, pool: Pool, episodes: Rows, *, exact: bool, weighted: bool) -> Odds:
        mixture = np.zeros(len(episodes))
        everywhere, somewhere = 0.0, []
        for part, share in self.components.items():
            odds = part.odds(pool, episodes, exact=exact or weighted, weighted=weighted)
            probability = odds.log2_probability
            if probability is None:
                return Odds(mixture, None, np.nan)
            mixture += share * np.exp2(probability)
            possible = np.isfinite(odds.log2_importance)
            # The quotient of probability and importance is the same for every episode of a component.
            scale = (probability[possible] - odds.log2_importance[possible])[:1].sum()
            smallest = share * float(np.exp2(odds.log2_least + scale))
            if odds.leaves_out:
                somewhere.append(smallest)
            else:
                everywhere += smallest
        # If one component never draws an episode, only another component may draw it.
        least = max(everywhere or min(somewhere, default=0.0), LEAST)
        with np.errstate(divide="ignore"):
            return Odds(np.log2(mixture), 0.0, float(np.log2(least)))

    @property
    def index_alpha(self) -> float:
        return next((s.alpha for s in self.components if isinstance(s, PrioritizedLoss)), DEFAULT_ALPHA)

    def with_alpha(self, alpha: float) -> Strategy:
        return Mixed({s.with_alpha(alpha) if isinstance(s, _ByLaw) else s: v for s, v in self.components.items()})

    def parameters(self) -> dict[str, Any]:
        return {"shares": [[json.loads(s.to_json()), share] for s, share in self.components.items()]}


_BY_NAME: dict[str, type[Strategy]] = {
    cls.name: cls for cls in (Uniform, PrioritizedLoss, PrioritizedRecency, Mixed, DomainBalanced)
}


def as_strategy(value: StoredStrategy | str) -> Strategy:
    """Return the strategy with this name or ``ReplayStrategy`` member. A strategy is returned as it is.

    Raises
    ------
    ConfigError
        No strategy has this name.
    """
    if isinstance(value, Strategy):
        return value
    name = value.value if isinstance(value, ReplayStrategy) else value
    if not isinstance(name, str) or name not in _BY_NAME:
        known = ", ".join(_BY_NAME)
        raise ConfigError(f"unknown strategy {shown(name)}; expected an object such as Uniform() or one of {known}")
    return _BY_NAME[name]()


def strategy_from_json(text: str) -> Strategy:
    """Return the strategy from the text that ``Strategy.to_json`` wrote."""
    return stored.built("the buffer's strategy", text, _from_dict)


def _from_dict(document: dict[str, Any]) -> Strategy:
    name = document.pop("name")
    if name == Mixed.name:
        document["shares"] = {_from_dict(part): share for part, share in document["shares"]}
    return _BY_NAME[name](**document)
