"""Schedules: what fraction of a layer's weights a mask update may replace, over training.

A schedule is a function ``(step, end_step, initial) -> fraction``.
"""

import math
from collections.abc import Callable

from isoflop.registry import Registry

Schedule = Callable[[float, float, float], float]

SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("cosine")
def cosine(step: float, end_step: float, initial: float) -> float:
    """Return ``initial / 2 * (1 + cos(pi * step / end_step))``, and 0 from `end_step` on."""
    if step >= end_step:
        return 0.0
    return initial / 2 * (1 + math.cos(math.pi * step / end_step))


@SCHEDULES.register("linear")
def linear(step: float, end_step: float, initial: float) -> float:
    """Return ``initial * (1 - step / end_step)``, and 0 from `end_step` on."""
    if step >= end_step:
        return 0.0
    return initial * (1 - step / end_step)


@SCHEDULES.register("constant")
def constant(step: float, end_step: float, initial: float) -> float:
    """Return `initial` until `end_step`, and 0 from then on."""
    return initial if step < end_step else 0.0
