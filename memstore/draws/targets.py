"""The share of the draws that a strategy aims to give to each domain, computed from the strata alone."""

from __future__ import annotations

import numpy as np

from memstore.buffer.snapshot import Snapshot
from memstore.buffer.blocks.slots import Floats
from memstore.draws.candidates import stored_total
from memstore.draws.laws import LossLaw
from memstore.draws.strategies import DomainBalanced, Mixed, PrioritizedLoss, Strategy, Uniform


def domain_targets(strategy: Strategy, snapshot: Snapshot) -> Floats | None:
    """Return the share of each domain, in the order of the buffer's domains. None if that needs a scan."""
    strata, names = snapshot.state.strata, snapshot.state.domain_names
    occupied = strata.occupied()
    domains = strata.domain[occupied] - 1
    shares = np.zeros(len(names))
    match strategy:
        case Uniform():
            np.add.at(shares, domains, strata.count[occupied])
        case PrioritizedLoss():
            law = LossLaw.of(snapshot, strategy.alpha)
            total = stored_total(snapshot, occupied, law) if len(occupied) else 0.0
            if total is None:
                return None
            np.add.at(shares, domains, strata.weight_sum[occupied] * np.exp2(law.log2_bound(strata, occupied) - total))
        case DomainBalanced():
            weights = dict.fromkeys(names, 1.0) if strategy.weights is None else strategy.weights
            for domain in np.unique(domains).tolist():
                shares[domain] = weights.get(names[domain], 0.0)
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
