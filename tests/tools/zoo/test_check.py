import dataclasses
from typing import Any

import pytest
from tools.zoo.check import check

import isoflop

CONFIG = isoflop.SparseWide(0.75)
transform = isoflop.transform


@pytest.mark.parametrize("config", [CONFIG, isoflop.SparseParallel(0.75)])
def test_a_good_model_passes_every_stage(models, config):
    stages = []
    result = check(f"{models}:good", config, stages.append)
    assert result["status"] == "pass", result
    assert stages == [
        "build", "transform", "check", "transform for real", "sparsify", "forward",
        "training step",
    ]  # fmt: skip
    assert "skipped" not in result
    assert abs(result["gap"]) <= 1e-3
    assert result["parameters"] > 10_000
    if config is CONFIG:
        assert result["share"] == 1.0
        assert result["hidden_ratio"] == pytest.approx(4.0)
        assert 2.0 < result["ratio"] < 4.0


def test_a_model_that_was_not_widened_fails(models, monkeypatch):
    def lazy(model, config, **options):
        return transform(model, dataclasses.replace(config, sparsity=0.0), **options)

    monkeypatch.setattr("tools.zoo.check.transform", lazy)
    result = check(f"{models}:good", CONFIG)
    assert (result["status"], result["stage"]) == ("fail", "check")
    assert result["cause"] == "not widened throughout"
    assert result["share"] == 0.0
    assert "3.weight 32×24×3×3 → 32×24×3×3" in result["message"]


def test_a_plan_that_misses_the_budget_fails(models, monkeypatch):
    def careless(*args, **options):
        model, plan = transform(*args, **options)
        layers = [
            dataclasses.replace(x, nnz=x.nnz - 2) if x.kind == "sparse" else x for x in plan.layers
        ]
        return model, dataclasses.replace(plan, layers=tuple(layers))

    monkeypatch.setattr("tools.zoo.check.transform", careless)
    assert check(f"{models}:good", CONFIG)["cause"] == "gap larger than a weight"


def _louder(module: Any, inputs: Any, output: Any) -> Any:
    return 100 * output


def test_logits_of_another_spread_fail(models, monkeypatch):
    def loud(*args, **options):
        model, plan = transform(*args, **options)
        model.register_forward_hook(_louder)
        return model, plan

    monkeypatch.setattr("tools.zoo.check.transform", loud)
    monkeypatch.setattr("tools.zoo.check.SPREAD_OF", 1)
    result = check(f"{models}:good", CONFIG)
    assert (result["stage"], result["cause"]) == ("forward", "logits of another spread")


def test_errors_are_results(models):
    result = check(f"{models}:raises", CONFIG)
    assert (result["status"], result["stage"], result["error"]) == (
        "fail", "transform", "InputError"
    )  # fmt: skip
    assert "layer N of shape (…)" in result["cause"]
    assert result["where"].endswith(tuple("0123456789"))


def test_a_model_that_is_broken_itself_is_not_built(models):
    result = check(f"{models}:unbuilt", CONFIG)
    assert (result["status"], result["cause"]) == ("not built", "RuntimeError: needs a library")
    assert check("torchvision:resnet17", CONFIG)["status"] == "not built"


def test_a_tiny_text_model_passes():
    config = dataclasses.replace(CONFIG, dense_ends=False)
    result = check("transformers:bart", config)
    assert result["status"] == "pass", result
    assert result["share"] == 1.0
