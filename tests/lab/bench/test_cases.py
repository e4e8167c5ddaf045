import copy

import pytest
import torch
from torch import nn

from isoflop.errors import IsoflopError
from isoflop.lab.bench.agree import relative_error
from isoflop.lab.bench.layer_case import layer_case
from isoflop.lab.bench.model_case import model_case
from isoflop.lab.bench.ours import ours
from isoflop.lab.models.gpt3 import Gpt3Config, gpt3
from isoflop.masks import named_masks
from isoflop.model_registry import MODELS, ModelEntry
from isoflop.surgery import is_fan_in_fan_out

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
    # Hugging Face stores its weights (in, out), so that these are blocks of four outputs.
    for _, module, parameter, mask in named_masks(case.sparse.model):
        assert is_fan_in_fan_out(module)
        blocks = mask.t().reshape(len(mask.t()) // 4, 4, -1)
        assert torch.equal(blocks.any(1), blocks.all(1)), parameter
    job = case.sparse
    model = ours(copy.deepcopy(job.model), mode="training", example_inputs=job.inputs)
    assert relative_error(job.start(model, job.inputs).results(), job.reference) < 1e-3


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_ours_computes_the_same_on_as_many_non_zeros(tmp_path, layer, pattern):
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
    job = case.sparse
    model = ours(copy.deepcopy(job.model), mode="training", example_inputs=job.inputs)
    found = job.start(model, job.inputs).results()
    assert found.keys() == job.reference.keys()
    for name, right in job.reference.items():
        torch.testing.assert_close(found[name], right, rtol=1e-4, atol=1e-4)


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
