import dataclasses
import math

import pytest

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.methods import SET, Dense, RigL, Static
from isoflop.methods.base import METHODS, Method
from isoflop.methods.drop_grow import DropGrow


def updates(method, total_steps):
    return [t for t in range(total_steps + 1) if method.update_due(t, total_steps)]


def test_updates_follow_every_delta_t_steps_until_the_end_fraction():
    assert updates(RigL(), 1000) == [100, 200, 300, 400, 500, 600, 700]
    assert updates(RigL(update_every=25), 100) == [25, 50]  # 75 is the end itself
    assert updates(RigL(update_every=1, end_fraction=0.0), 10) == []
    assert updates(RigL(update_every=4, end_fraction=1.0), 10) == [4, 8]
    assert updates(RigL(), 100) == []


def test_drop_fraction_follows_the_schedule_to_the_end_of_updates():
    method = RigL(end_fraction=0.5)
    fractions = [method.drop_fraction(t, 2000) for t in (0, 250, 500, 750)]
    assert fractions == pytest.approx([0.3, 0.25607, 0.15, 0.04393], abs=5e-6)
    assert RigL(schedule="constant").drop_fraction(600, 1000) == 0.3


def test_methods_are_frozen_keyword_only_and_named():
    assert [Static().name, Dense().name, SET().name, RigL().name] == [
        "static",
        "dense",
        "set",
        "rigl",
    ]
    assert RigL(alpha=0.5).config == {
        "alpha": 0.5,
        "update_every": 100,
        "end_fraction": 0.75,
        "schedule": "cosine",
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        RigL().alpha = 0.1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        RigL(0.1)  # pyright: ignore[reportCallIssue]
    for _, cls in METHODS.items():
        assert dataclasses.is_dataclass(cls)
        assert issubclass(cls, Method)


def test_an_unregistered_method_goes_by_its_class_name():
    class Mine(Method):
        pass

    assert Mine().name == "Mine"


@pytest.mark.parametrize("alpha", [0, -0.1, 1.1, math.nan, math.inf, "0.3", True, None])
def test_bad_alpha(alpha):
    with pytest.raises(IsoflopError, match="alpha must lie in"):
        RigL(alpha=alpha)


@pytest.mark.parametrize("update_every", [0, -1, 1.5, True, "100"])
def test_bad_update_every(update_every):
    with pytest.raises(IsoflopError, match="positive integer such as 100"):
        SET(update_every=update_every)


@pytest.mark.parametrize("end_fraction", [-0.1, 1.1, math.nan, None, False])
def test_bad_end_fraction(end_fraction):
    with pytest.raises(IsoflopError, match="end_fraction must lie in"):
        SET(end_fraction=end_fraction)


def test_bad_schedule():
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        RigL(schedule="cosin")


def test_a_method_that_drops_and_grows_must_say_what_it_grows_by():
    with pytest.raises(TypeError, match=r"DropGrow does not say what it grows by.*GRADIENT"):
        DropGrow()
