"""FLOPs: a model run once on fake tensors, with every multiplication counted."""

from isoflop.flops.rules import register_widening_rule
from isoflop.flops.table import FlopTable
from isoflop.flops.trace import network_ends, profile

__all__ = ["FlopTable", "network_ends", "profile", "register_widening_rule"]
