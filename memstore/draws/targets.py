"""The share of the draws that a strategy aims to give to each domain, computed from the heads of the blocks alone."""

from __future__ import annotations

import numpy as np

from memstore.buffer.blocks.slots import Floats, Ints
from memstore.buffer.blocks.views import View
from memstore.buffer.blocks.weights import in_largest_unit
from memstore.buffer.snapshot import Snapshot
from memstore.draws.laws import LossLaw
from memstore.draws.strategies import DomainBalanced, Mixed, PrioritizedLoss, Strategy, Uniform


def domain_targets(strategy: Strategy, snapshot: Snapshot) -> Floats | None:
    """Return the share of each domain, in the order of the buffer's domains. None if the heads do not tell it."""
    copy, names = snapshot.state.blocks, snapshot.state.domain_names
    sizes = domain_sizes(snapshot)
    shares = np.zeros(len(names))
    match strategy:
        case Uniform():
            shares += sizes
        case PrioritizedLoss():
            law = LossLaw.of(snapshot, strategy.alpha)
            if law.of_blocks != copy.pages.law:
                return None
            view = View.of(copy, law.of_blocks)
            # The largest priority ever may be that of an episode that has left, and beyond all units of the others.
            unmeasured = law.of_blocks.log2_unmeasured(law.top) if view.gaps.any() else -np.inf
            sums, unit = in_largest_unit(view.sums, view.unit, unmeasured)
            weight = sums + view.gaps * np.exp2(unmeasured - unit)
            shares += np.bincount(copy.domains - 1, weight, len(names))
        case DomainBalanced():
            weights = dict.fromkeys(names, 1.0) if strategy.weights is None else strategy.weights
            for domain in np.flatnonzero(sizes).tolist():
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


def domain_sizes(snapshot: Snapshot) -> Ints:
    """Return the number of live episodes of each domain, in the order of the buffer's domains."""
    heads = snapshot.state.blocks.heads
    return np.bincount(heads["domain"] - 1, heads["live"], len(snapshot.state.domain_names)).astype(np.int64)
