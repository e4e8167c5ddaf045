"""Who uses which weight: a weight may only move if its own layer alone uses it."""

from collections import Counter

from torch import nn

from isoflop.flops.trace import Trace


def weight_users(trace: Trace) -> dict[str, set[str]]:
    """Return the paths of the modules whose forward pass multiplied by each weight."""
    users: dict[str, set[str]] = {}
    for row in trace.table.rows:
        for name in row.parameters:
            users.setdefault(name, set()).add(row.module)
    return users


def owner_counts(model: nn.Module) -> Counter[int]:
    """Return how many modules own each parameter, by its id; a tied one has several."""
    return Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
