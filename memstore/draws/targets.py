"""What share of the draws a strategy gives to each domain, as far as the strata tell."""

from __future__ import annotations

import numpy as np

from memstore.buffer.snapshot import Snapshot
from memstore.buffer.strata import Floats
from memstore.draws.arithmetic import log2_sum
from memstore.draws.strategies import DomainBalanced, Mixed, PrioritizedLoss, Strategy, Uniform


def domain_targets(strategy: Strategy, snapshot: Snapshot) -> Floats | None:
    """Share of each domain, in the order of the buffer's domains; None where it needs a scan."""
    strata = snapshot.state.strata
    occupied = strata.occupied()
    domains = strata.domain[occupied] - 1
    shares = np.zeros(len(snapshot.state.domain_names))
    match strategy:
        case Uniform():
            np.add.at(shares, domains, strata.count[occupied])
        case PrioritizedLoss() if strategy.alpha == snapshot.settings.alpha:
            bound = strategy.alpha * strata.log2_bound(occupied, snapshot.state.counters.top_priority)
            total = log2_sum(bound, strata.weight_sum[occupied]) if len(occupied) else 0.0
            np.add.at(shares, domains, strata.weight_sum[occupied] * np.exp2(bound - total))
        case DomainBalanced():
            for domain in np.unique(domains).tolist():
                weights = strategy.weights
                shares[domain] = 1.0 if weights is None else weights.get(snapshot.state.domain_names[domain], 0.0)
        case Mixed():
            for part, share in strategy.components.items():
                of_part = domain_targets(part, snapshot)
                if of_part is None:
                    return None
                shares += share * of_part
        case _:
            return None
    total = shares.sum()
    return shares / total if total else shares
