import pytest
from tools.zoo.build import build
from tools.zoo.fixed import fixed_sizes
from tools.zoo.growth import growth
from tools.zoo.sizes import FIXED

from isoflop.flops.table import FlopTable
from isoflop.flops.trace import Trace
from isoflop.plan import LayerPlan, Plan


def grown(dense, wide, *, first=(), last=(), factor=2.0, fixed=()):
    layer = LayerPlan(
        parameter="a.weight", source="a", kind="sparse", dense_shape=dense, shape=wide, nnz=1,
        macs_per_weight=1, source_macs=1,
    )  # fmt: skip
    plan = Plan(
        transform="wide", config={}, scope="model", dense_macs=1, other_macs=0, layers=(layer,)
    )
    trace = Trace(FlopTable((), {}), frozenset(first), frozenset(last), ())
    return growth(plan, trace, factor, lambda name: fixed).share


@pytest.mark.parametrize(
    ("dense", "wide"),
    [
        ((64, 32), (128, 64)),
        ((64, 32, 3, 3), (128, 64, 3, 3)),
        ((64, 1, 7, 7), (128, 1, 7, 7)),  # depthwise
        ((6, 32, 64), (6, 64, 128)),  # experts
        ((64, 32), (120, 60)),  # rounded
    ],
)
def test_a_weight_that_grew(dense, wide):
    assert grown(dense, wide, fixed={6}) == 1.0


@pytest.mark.parametrize(
    ("dense", "wide"),
    [
        ((64, 32), (64, 32)),
        ((64, 32), (128, 32)),
        ((64, 32), (64, 64)),
        ((64, 32, 3, 3), (128, 32, 3, 3)),
        ((64, 1, 7, 7), (64, 1, 7, 7)),
        ((6, 32, 64), (6, 32, 128)),
    ],
)
@pytest.mark.parametrize("factor", [2.0, 1.5])
def test_a_weight_that_did_not(dense, wide, factor):
    assert grown(dense, wide, factor=factor, fixed={3, 6, 7}) == 0.0


def test_the_outsides_of_the_ends_and_sizes_that_are_no_widths_stay():
    assert grown((64, 3, 7, 7), (128, 3, 7, 7), first=["a.weight"]) == 1.0
    assert grown((64, 3, 7, 7), (64, 3, 7, 7), first=["a.weight"]) == 0.0
    assert grown((10, 64), (10, 128), last=["a.weight"]) == 1.0
    assert grown((131, 64), (131, 64), last=["a.weight"], fixed={131}) == 0.0
    assert grown((6, 64), (6, 128), fixed={6}) == 1.0
    assert grown((6, 64), (6, 128)) == 0.0
    assert grown((6, 64), (6, 64), fixed={6}) == 0.0


@pytest.mark.parametrize(
    ("spec", "weight", "sizes"),
    [
        ("timm:mixer_s32_224", "blocks.0.mlp_tokens.fc1.weight", {1, 2, 3, 49}),
        ("timm:mixer_s32_224", "blocks.0.mlp_channels.fc1.weight", {1, 2, 3}),
        ("timm:cait_xxs24_224", "blocks.0.attn.proj_l.weight", {1, 2, 3, 4}),
        ("transformers:gpt2", "anything", FIXED),
    ],
)
def test_sizes_that_are_no_widths(spec, weight, sizes):
    assert fixed_sizes(spec, build(spec, meta=True), [(1, 2)])(weight) == sizes


def test_sizes_of_the_outputs_are_no_widths():
    model = build("timm:mixer_s32_224", meta=True)
    sizes = fixed_sizes("timm:mixer_s32_224", model, [(1, 1000)])(
        "blocks.0.mlp_channels.fc1.weight"
    )
    assert sizes == {1, 2, 3, 1000}
