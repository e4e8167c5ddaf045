"""Rules tell what a trace cannot see."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoflop
from isoflop.flops import rules


@pytest.fixture(autouse=True)
def _no_rule_outlives_its_test(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", {})


def network(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), *middle, nn.Linear(16, 16), nn.Linear(16, 3))


def wide(model: nn.Module) -> Any:
    config = isoflop.SparseWide(0.75)
    new, plan = isoflop.transform(model, config, example_inputs=torch.zeros(6, 4))
    assert abs(plan.macs - plan.dense_macs) <= max(x.macs_per_weight for x in plan.sparse_layers)
    assert new(torch.randn(6, 4)).shape == (6, 3)
    return new


class Experts(nn.Module):
    """Sends every row to one of two experts, by what the row holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        expert = (x.sum(1) > 0).long()
        out = torch.zeros_like(x)
        for index in expert.unique().tolist():
            rows = expert == index
            out[rows] = x[rows] @ self.weight[index]
        return out


def balanced(experts: Experts, x: Tensor) -> Tensor:
    ends = torch.tensor([len(x) // 2, len(x)], dtype=torch.int32)
    return F.grouped_mm(x, experts.weight, offs=ends)


def test_a_module_that_reads_values_is_named_and_a_forward_pass_of_its_own_mends_it():
    model = network(Experts())
    message = (
        r"module '1' \(Experts\), `for index.*` in test_rules.py:\d+ raised .*register_widening"
    )
    with pytest.raises(isoflop.InputError, match=message):
        wide(model)
    isoflop.register_widening_rule(Experts, forward=balanced)
    assert isoflop.profile(model, (6, 4)).macs == 6 * (4 * 16 + 2 * 16 * 16 + 16 * 3)
    assert wide(model)[1].weight.shape == (2, 32, 32)


class Window(nn.Module):
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.window


def test_rebuild_fills_a_buffer_whose_content_nothing_tells():
    with pytest.raises(isoflop.WideningError, match=r"'1.window'.*Window, rebuild="):
        wide(network(Window()))
    isoflop.register_widening_rule(
        f"{__name__}.Window",
        rebuild=lambda module: module.window.copy_(torch.hann_window(len(module.window))),
    )
    assert torch.equal(wide(network(Window()))[1].window, torch.hann_window(32))


class Spelled(nn.Module):
    """Restates its width under a name that says a number of something."""

    def __init__(self) -> None:
        super().__init__()
        self.num_lanes = 16
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).view(len(x), self.num_lanes)


def test_an_attribute_can_be_told_to_be_a_width():
    with pytest.raises(isoflop.WideningError, match=r"96 \(96\) in 1 \(view\).*register_widening"):
        wide(network(Spelled()))
    isoflop.register_widening_rule(Spelled, widths=("num_lanes",))
    assert wide(network(Spelled()))[1].num_lanes == 32


class Codes(nn.Module):
    """A width that is the same by chance in one place and fixed in another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 12)
        self.outer = nn.Linear(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))


def test_sizes_can_be_told_to_stay():
    class Fixed(nn.Linear):
        pass

    model: Any = network(Codes())
    model[1].inner = Fixed(16, 12)
    assert wide(model)[1].inner.weight.shape == (24, 32)
    isoflop.register_widening_rule(Fixed, constants=("weight", "bias"))
    # The fixed layer takes 16 inputs, and so holds the whole residual width.
    with pytest.raises(isoflop.WideningError, match="did not grow"):
        wide(model)


def test_a_rule_holds_for_subclasses_and_the_nearest_class_wins():
    class Child(Codes):
        pass

    isoflop.register_widening_rule(Codes, constants=("a",))
    assert rules.rule_of(Child()).constants == {"a"}
    isoflop.register_widening_rule(Child, constants=("b",))
    assert rules.rule_of(Child()).constants == {"b"}
    assert rules.rule_of(nn.Linear(1, 1)) == rules.WideningRule()


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("Linear", {"widths": ("a",)}, "full name"),
        (3, {"widths": ("a",)}, "full name"),
        (nn.Linear(1, 1), {"widths": ("a",)}, "full name"),
        (nn.Linear, {"widths": 3}, "sequence"),
        (nn.Linear, {}, "says nothing"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(target, options, message):
    with pytest.raises(isoflop.IsoflopError, match=message):
        isoflop.register_widening_rule(target, **options)


def test_a_string_is_one_name():
    class Named(nn.Module):
        pass

    isoflop.register_widening_rule(Named, widths="size", constants="count")
    rule = rules.rule_of(Named())
    assert (rule.widths, rule.constants) == (frozenset({"size"}), frozenset({"count"}))
