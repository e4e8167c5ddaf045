import math

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

import isoflop
from isoflop import spectral
from isoflop.masks import set_mask
from isoflop.spectral import analyze, analyze_mask, average, largest_two

FANO = torch.tensor([[(c - r) % 7 in (0, 1, 3) for c in range(7)] for r in range(7)])
BOUNDS = ("mean-degree", "biregular", "mu0")


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_heawood_graph_is_ramanujan_by_every_bound(bound):
    found = analyze_mask(FANO, torch.full((7, 7), 0.5), bound=bound)
    assert found.ramanujan_gap == pytest.approx(math.sqrt(2))
    assert found.spectral_gap == pytest.approx(0.792893, abs=1e-6)
    assert (found.left, found.right, found.edges) == (7, 7, 21)
    assert (found.left_degree, found.right_degree) == (3.0, 3.0)


@pytest.mark.parametrize(("bound", "gap"), [*zip(BOUNDS, (1.829708, 2.030629, 2.0), strict=True)])
def test_the_fano_plane_on_its_complement(bound, gap):
    # 14 left nodes, of degrees 3 and 4, and 7 right ones.
    mask = torch.cat([FANO, ~FANO]).T
    found = analyze_mask(mask, torch.ones(7, 14), bound=bound)
    assert found.ramanujan_gap == pytest.approx(gap, abs=1e-6)
    assert found.spectral_gap == pytest.approx(3.0)
    assert found.subgraphs == 2
    assert found.imsg == pytest.approx(2.085786, abs=1e-6)
    if bound == "mean-degree":
        assert found.imdb == pytest.approx(1.732051, abs=1e-6)
        assert found.imdb_normalized == pytest.approx(0.545876, abs=1e-6)


def test_the_mask_decides_the_edges_and_isolated_nodes_are_left_out():
    mask = torch.zeros(9, 10, dtype=torch.bool)
    mask[:7, :7] = FANO
    found = analyze_mask(mask, torch.zeros(9, 10))
    assert (found.left, found.right) == (7, 7)
    assert found.ramanujan_gap == pytest.approx(math.sqrt(2))
    assert found.spectral_gap == 0.0


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.eye(5, dtype=torch.bool), "mean left degree 1.00 below 3"),
        (torch.zeros(4, 4, dtype=torch.bool), "mean left degree 0.00 below 3"),
        (torch.ones(2, 9, dtype=torch.bool), "mean left degree 2.00 below 3"),
    ],
)
def test_graphs_that_are_too_sparse_are_skipped_with_the_reason(mask, reason):
    found = analyze_mask(mask, torch.ones(mask.shape))
    assert found.skipped == reason
    assert found.ramanujan_gap is found.imdb is found.spectral_gap is None


def test_full_masks_have_no_second_value():
    found = analyze_mask(torch.ones(8, 6, dtype=torch.bool))
    assert found.ramanujan_gap == pytest.approx(2 * math.sqrt(2 * 48 / 14 - 1))
    assert found.spectral_gap is found.imsg is None


def test_groups_are_blocks_of_the_diagonal():
    mask = torch.cat([FANO, FANO])  # two groups of seven inputs
    found = analyze_mask(mask, torch.ones(14, 7), groups=2)
    whole = torch.block_diag(FANO.float(), FANO.float())
    expected = analyze_mask(whole.bool(), whole)
    assert found == expected
    # Two components share the largest value.
    assert found.spectral_gap == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("shape", [(300, 400), (500, 290), (300, 300)])
def test_the_iterative_solver_agrees_with_the_exact_one(shape):
    generator = np.random.default_rng(0)
    matrix = scipy.sparse.random_array(shape, density=0.1, rng=generator, format="csc")
    exact = np.linalg.svd(matrix.toarray(), compute_uv=False)
    assert min(shape) > spectral._DENSE
    assert largest_two(matrix) == pytest.approx(exact[:2], rel=1e-9)


def test_a_model_of_all_kinds_of_layers():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.ConvTranspose2d(16, 12, 3, groups=2),
        nn.Flatten(),
        nn.Linear(12, 24),
        nn.Linear(24, 4),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    isoflop.sparsify(
        model, optimizer, "static", isoflop.plain_plan(model, 0.4, dense_ends=False), total_steps=1
    )
    found = analyze(model)
    assert list(found) == ["0.weight", "1.weight", "2.weight", "4.weight", "5.weight"]
    sizes = {name: (s.left, s.right) for name, s in found.items()}
    assert sizes["1.weight"] == (16 * 9, 16)
    assert sizes["2.weight"] == (16 * 9, 12)
    for name, result in found.items():
        assert result.edges == int(model.get_buffer(f"{name}_mask").sum())
    linear: nn.Module = model[4]
    mask = linear.get_buffer("weight_mask")
    assert found["4.weight"] == analyze_mask(mask, linear.get_parameter("weight"))


def test_mistakes_are_named():
    with pytest.raises(isoflop.IsoflopError, match="no masks"):
        analyze(nn.Linear(2, 2))
    with pytest.raises(isoflop.IsoflopError, match="mean-degree"):
        analyze_mask(FANO, bound="x")  # type: ignore[arg-type]
    with pytest.raises(isoflop.IsoflopError, match="same shape"):
        analyze_mask(FANO, torch.ones(3, 3))
    with pytest.raises(isoflop.IsoflopError, match="not finite"):
        analyze_mask(FANO, torch.full((7, 7), math.nan))
    layer = nn.Linear(7, 7)
    set_mask(layer, "weight", FANO)
    with torch.no_grad():
        layer.weight[0, 0] = math.inf
    with pytest.raises(isoflop.IsoflopError, match="'weight' are not finite"):
        analyze(layer)
    with pytest.raises(isoflop.IsoflopError, match="2 groups"):
        analyze_mask(FANO, groups=2)


def test_the_network_is_the_mean_of_the_layers_that_have_a_measure():
    plain = analyze_mask(torch.cat([FANO, ~FANO]).T)
    weighted = analyze_mask(FANO, torch.full((7, 7), 0.5))
    empty = analyze_mask(torch.zeros(4, 4, dtype=torch.bool))
    found = average({"a": plain, "b": weighted, "c": empty})
    assert found["ramanujan_gap"] == pytest.approx((1.829708 + math.sqrt(2)) / 2, abs=1e-6)
    assert found["spectral_gap"] == weighted.spectral_gap
    assert average({"c": empty}) == dict.fromkeys(found)


def test_masks_of_all_ones_have_measures():
    found = analyze_mask(torch.ones(8, 8, dtype=torch.bool))
    assert found.ramanujan_gap == pytest.approx(2 * math.sqrt(7), abs=1e-6)  # σ2 = 0


TYPES = [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_weights_of_every_type_are_measured_in_float64(dtype):
    mask = torch.rand(24, 24, generator=torch.Generator().manual_seed(0)) < 0.4
    weight = (torch.randn(24, 24, generator=torch.Generator().manual_seed(1)) * 9).to(dtype)
    assert analyze_mask(mask, weight) == analyze_mask(mask, weight.double())


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_weights_count_by_their_magnitude():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(24, 24, generator=generator) < 0.4
    layer = nn.Linear(24, 24).to(torch.complex64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(24, 24, generator=generator, dtype=torch.complex64))
    set_mask(layer, "weight", mask)
    found = analyze(layer)["weight"]
    assert found == analyze_mask(mask, layer.weight.detach().to(torch.complex128).abs())
    assert found != analyze_mask(mask, layer.weight.detach().real)
    with torch.no_grad():
        layer.weight.copy_(torch.full((24, 24), complex(1, math.nan)))
    with pytest.raises(isoflop.IsoflopError, match="not finite"):
        analyze(layer)


def test_tensors_without_values_are_refused():
    with pytest.raises(isoflop.IsoflopError, match="meta device"):
        analyze_mask(FANO.to("meta"))
    with pytest.raises(isoflop.IsoflopError, match="meta device"):
        analyze_mask(FANO, torch.ones(7, 7, device="meta"))


@pytest.mark.filterwarnings(
    "ignore:Sparse CSR", "ignore:ComplexHalf", "ignore:.*quantize_per_tensor"
)
def test_tensors_of_every_kind_have_the_gap_of_their_absolute_values():
    torch.manual_seed(0)
    mask, weight = torch.rand(24, 24) < 0.5, torch.randn(24, 24)
    weight = (weight * 20).round()  # exact in every type
    expected = analyze_mask(mask, weight.double().abs())
    kinds = [weight.to(kind) for kind in (torch.float16, torch.bfloat16, torch.int8, torch.int64)]
    kinds += [weight.to(kind) * 1j for kind in (torch.complex64, torch.complex128)]
    kinds += [weight.to(torch.complex64).to(torch.complex32), weight.to_sparse()]
    kinds += [weight.to_sparse_csr(), torch.quantize_per_tensor(weight, 1, 0, torch.qint8)]
    kinds += [torch.where(mask, weight, torch.nan), weight.to(torch.complex64).conj()]
    for kind in kinds:
        assert analyze_mask(mask, kind).spectral_gap == expected.spectral_gap
    for kind in (mask.long(), mask.bfloat16(), mask.to_sparse(), mask.to(torch.complex64)):
        assert analyze_mask(kind, weight) == expected
    assert analyze_mask(torch.zeros(0, 5) > 0, torch.zeros(0, 5)).edges == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((3, 3))}, "mask must be a torch.Tensor, not ndarray"),
        ({"weight": [[1]]}, "weight must be a torch.Tensor, not list"),
        ({"groups": 0}, "at least 1, not 0"),
        ({"groups": "2"}, "at least 1, not '2'"),
        ({"bound": "biregulr"}, "Did you mean 'biregular'"),
        ({"bound": None}, "Unknown bound None"),
    ],
)
def test_what_cannot_be_analysed(options, message):
    with pytest.raises(isoflop.IsoflopError, match=message):
        analyze_mask(**{"mask": torch.ones(3, 3) > 0, **options})


def test_names_of_bounds_in_any_case():
    mask = torch.rand(24, 24) < 0.5
    assert analyze_mask(mask, bound="Mu0") == analyze_mask(mask, bound="mu0")  # pyright: ignore


@pytest.mark.parametrize("model", ["timm:resnet18", {}, None])
def test_what_is_no_model(model):
    with pytest.raises(isoflop.IsoflopError, match=r"must be a torch.nn.Module"):
        analyze(model)
