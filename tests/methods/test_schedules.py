import pytest

from isoflop.methods.schedules import SCHEDULES, constant, cosine, linear


@pytest.mark.parametrize(
    ("step", "fraction"), [(0, 0.3), (250, 0.25607), (500, 0.15), (750, 0.04393), (1000, 0)]
)
def test_cosine(step, fraction):
    assert cosine(step, 1000, 0.3) == pytest.approx(fraction, abs=5e-6)


def test_linear_and_constant():
    assert [linear(t, 10, 0.4) for t in (0, 5, 10)] == [0.4, 0.2, 0.0]
    assert [constant(t, 10, 0.4) for t in (0, 9, 10)] == [0.4, 0.4, 0.0]


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_every_schedule_starts_at_the_initial_value_never_rises_and_ends(name):
    schedule = SCHEDULES.get(name)
    values = [schedule(t, 20, 0.5) for t in range(25)]
    assert values[0] == 0.5
    assert values == sorted(values, reverse=True)
    assert values[20:] == [0.0] * 5
    assert schedule(0, 0, 0.5) == 0.0
