import dataclasses
import json
from fractions import Fraction

import pytest
from torch import nn

from isoflop.errors import PlanError
from isoflop.plan import LayerPlan, Plan


def layer(name: str, kind: str = "sparse", nnz: int = 6, **changes) -> LayerPlan:
    values = {
        "parameter": f"{name}.weight",
        "source": name,
        "kind": kind,
        "dense_shape": (2, 3),
        "shape": (4, 3),
        "nnz": nnz,
        "macs_per_weight": 10,
        "source_macs": 60,
    }
    return LayerPlan(**(values | changes))


@pytest.fixture
def plan() -> Plan:
    return Plan(
        transform="wide",
        config={"sparsity": 0.5, "exclude": []},
        scope="model",
        dense_macs=200,
        other_macs=20,
        layers=(layer("a", "dense", 12), layer("b"), layer("c", nnz=5, source_macs=40)),
    )


def test_totals(plan):
    assert plan.macs == 20 + 120 + 60 + 50
    assert plan.unmasked_macs == 20 + 3 * 120
    assert plan.relative_gap == pytest.approx(50 / 200)
    assert plan.layer_gap == pytest.approx(10 / 40)
    assert (plan.nnz, plan.numel) == (23, 36)
    assert plan.density == pytest.approx(11 / 24)
    assert plan.layers[1].sparsity == 0.5


def test_the_gap_of_a_layer_counts_all_its_parts(plan):
    parts = (layer("b", nnz=3), layer("b", "dense", 2, parameter="b.low_rank.weight"))
    split = dataclasses.replace(plan, layers=parts)
    assert split.layer_gap == pytest.approx((30 + 20 - 60) / 60)


def test_json_round_trip(plan, tmp_path):
    assert Plan.from_json(plan.to_json()) == plan
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert json.loads((tmp_path / "plan.json").read_text())["totals"]["macs"] == plan.macs


def test_a_weight_may_cost_a_fraction_of_a_mac(plan, tmp_path):
    experts = layer("e", nnz=5, macs_per_weight=Fraction(20, 3))
    assert (experts.macs, experts.unmasked_macs) == (33, 80)
    mixed = dataclasses.replace(plan, layers=(experts,))
    assert Plan.from_json(mixed.to_json()) == mixed


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}', '{"format_version": 9}'])
def test_damaged_plans_are_refused(text):
    with pytest.raises(PlanError, match="plan"):
        Plan.from_json(text)


def test_prints_every_layer_and_both_gaps(plan):
    text = str(plan)
    assert all(layer.parameter in text for layer in plan.layers)
    assert "gap of the model +2.50e-01" in text
    assert "largest gap of a layer +2.50e-01" in text


def test_belongs_to_its_model(plan):
    model = nn.ModuleDict({name: nn.Linear(3, 4) for name in "abc"})
    plan.check(model)
    with pytest.raises(PlanError, match=r"'b.weight' the shape \(4, 3\).*\(5, 3\)"):
        plan.check(nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 5)}))
    with pytest.raises(PlanError, match=r"'c.weight', which this model lacks"):
        plan.check(nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)}))


def test_a_file_that_cannot_be_read_is_no_plan(tmp_path):
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(bytes([255, 254, 0]))
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path / "binary.json")
