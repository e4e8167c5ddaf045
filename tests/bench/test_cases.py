import copy

import pytest
import torch
from torch import nn

from isoflop.bench.layer_case import layer_case
from isoflop.bench.model_case import model_case
from isoflop.bench.ours import ours
from isoflop.errors import IsoflopError
from isoflop.kernels import SparseConv2d, SparseLinear
from isoflop.masks import named_masks
from isoflop.models.gpt3 import Gpt3Config, gpt3
from isoflop.models.registry import MODELS, ModelEntry

DIGITS = "isoflop:resnet8_digits"


@pytest.fixture
def tiny_gpt(monkeypatch):
    def build():
        return gpt3(Gpt3Config(2, 32, 4), vocab_size=16, context=12)

    monkeypatch.setitem(MODELS._entries, "tiny_gpt", ModelEntry(build, (12,), "tokens"))
    return "isoflop:tiny_gpt"


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_a_model_and_its_sparse_form_of_equal_macs(tmp_path, kind):
    case = model_case(kind, DIGITS, sparsity=0.75, batch=3, threads=1, folder=tmp_path)
    workload = case.workload
    assert workload["macs"] == pytest.approx(workload["dense_macs"], rel=1e-3)
    assert workload["input_shape"] == [3, 1, 8, 8]
    masks = list(named_masks(case.sparse.model))
    assert masks
    for _, module, parameter, mask in masks:
        weight = module.get_parameter(parameter)
        assert not weight[~mask].any()
    assert case.trains == case.dense.model.training == (kind == "training")
    reference = case.dense.reference
    assert all(bool(tensor.isfinite().all()) for tensor in reference.values())
    if kind == "training":
        # A step of gradient descent lowers the loss.
        assert reference["change of the loss"] < 0
        names = {f"gradient of {name}" for name, _ in case.dense.model.named_parameters()}
        assert names == reference.keys() - {"loss", "change of the loss"}
    else:
        assert reference.keys() == {"output"}


def test_norms_leave_no_branch_out(tmp_path):
    case = model_case("inference", DIGITS, sparsity=0.5, batch=2, threads=1, folder=tmp_path)
    for job in (case.dense, case.sparse):
        norms = [m for m in job.model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            assert float(norm.weight.detach().min()) >= 0.5
            assert norm.running_var is not None
            assert not torch.equal(norm.running_var, torch.ones_like(norm.running_var))
            assert norm.momentum is not None


def test_sparsity_zero_is_the_model_itself(tmp_path):
    case = model_case("inference", DIGITS, sparsity=0.0, batch=2, threads=1, folder=tmp_path)
    assert case.sparse.model is case.dense.model


def test_language_models(tmp_path, tiny_gpt):
    case = model_case(
        "training", tiny_gpt, sparsity=0.75, sequence=8, threads=1, pattern="1x4", folder=tmp_path
    )
    assert case.workload["input_shape"] == [8, 8]
    assert case.dense.inputs.dtype == torch.long
    model = ours(copy.deepcopy(case.sparse.model), mode="training", example_inputs=None)
    sparse = [m for m in model.modules() if isinstance(m, SparseLinear)]
    # Hugging Face stores its weights (in, out), so that these are blocks of four outputs.
    assert sparse
    assert all(layer.flipped and layer.index.rows == 4 for layer in sparse)


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_ours_stores_non_zeros_and_computes_the_same(tmp_path, layer, pattern):
    case = layer_case(
        layer,
        sparsity=0.75,
        inputs=8,
        outputs=12,
        batch=4,
        image=5,
        backward=True,
        pattern=pattern,
        threads=1,
        folder=tmp_path,
    )
    assert case.workload["nnz"] == case.dense.model.get_parameter("weight").numel()
    assert case.workload["sparse_shape"][:2] == [24, 16]
    model = ours(copy.deepcopy(case.sparse.model), mode="training", example_inputs=None)
    assert isinstance(model, SparseLinear if layer == "linear" else SparseConv2d)
    assert model.index.rows == (4 if pattern == "4x1" else 1)
    found = case.sparse.start(model, case.sparse.inputs).results()
    assert found.keys() == case.sparse.reference.keys()
    for name, right in case.sparse.reference.items():
        torch.testing.assert_close(found[name], right)


def test_a_layer_of_fixed_size(tmp_path):
    case = layer_case(
        "linear",
        sparsity=0.75,
        inputs=8,
        outputs=12,
        batch=4,
        fixed_size=True,
        threads=1,
        folder=tmp_path,
    )
    assert case.workload["sparse_shape"] == [12, 8]
    assert case.workload["nnz"] == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--batch"),
        ({"image": 0}, "--image"),
        ({"sequence": 4}, "--image in place of --sequence"),
        ({"pattern": "5y1"}, "5y1"),
    ],
)
def test_wrong_options_of_models(tmp_path, options, message):
    with pytest.raises(IsoflopError, match=message):
        model_case("inference", DIGITS, sparsity=0.5, threads=1, folder=tmp_path, **options)


def test_tokens_are_no_images(tmp_path, tiny_gpt):
    with pytest.raises(IsoflopError, match="--sequence in place of --image"):
        model_case("inference", tiny_gpt, sparsity=0.5, image=8, threads=1, folder=tmp_path)


def test_models_of_unknown_input(tmp_path, user_module):
    spec = f"{user_module}:mlp"
    with pytest.raises(IsoflopError, match="give --image"):
        model_case("inference", spec, sparsity=0.5, threads=1, folder=tmp_path)
    case = model_case("inference", spec, sparsity=0.0, image=2, batch=3, threads=1, folder=tmp_path)
    assert case.workload["input_shape"] == [3, 3, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": 0}, "--inputs"),
        ({"stride": 0}, "--stride"),
        ({"pattern": "4x1", "fixed_size": True, "outputs": 6}, "multiples of 4"),
    ],
)
def test_wrong_options_of_layers(tmp_path, options, message):
    sizes = {"inputs": 8, "outputs": 12, "batch": 4, **options}
    with pytest.raises(IsoflopError, match=message):
        layer_case("linear", sparsity=0.5, threads=1, folder=tmp_path, **sizes)
