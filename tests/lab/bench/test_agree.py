import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.lab.bench.agree import relative_error

RIGHT = {"output": torch.tensor([3.0, 4.0]), "gradient of bias": torch.tensor([1.0])}


def test_the_same_has_no_error_and_more_is_ignored():
    assert relative_error({**RIGHT, "more": torch.ones(1)}, RIGHT) == 0.0


@given(st.floats(1e-6, 1e3), st.sampled_from(list(RIGHT)))
def test_the_error_is_relative_to_the_norm_of_the_tensor(error, name):
    right = RIGHT[name]
    found = {**RIGHT, name: right.double() + error * right.norm() * torch.eye(len(right))[0]}
    assert relative_error(found, RIGHT) == pytest.approx(error, rel=1e-6)


def test_noise_in_tensors_that_are_zero_counts_relative_to_the_largest_of_their_kind():
    right = {"gradient of a": torch.tensor([100.0]), "gradient of b": torch.tensor([1e-9])}
    found = {**right, "gradient of b": torch.tensor([1e-8])}
    assert relative_error(found, right) < 1e-6
    assert relative_error({**right, "gradient of b": torch.tensor([10.0])}, right) > 1.0


@pytest.mark.parametrize(
    "output", [None, torch.zeros(3), torch.tensor([math.nan, 4.0]), torch.tensor([math.inf, 4.0])]
)
def test_what_is_missing_or_not_finite_is_infinitely_wrong(output):
    found = {**RIGHT, "output": output}
    assert relative_error(found, RIGHT) == math.inf


def test_all_zeros():
    zeros = {"output": torch.zeros(2)}
    assert relative_error(zeros, zeros) == 0.0
    assert relative_error({"output": torch.ones(2)}, zeros) == math.inf
