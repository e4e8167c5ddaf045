"""Models come back from files as they were."""

import copy
import json
import os

import pytest
import safetensors.torch
import torch
from tests.zoo import gpt2
from torch import nn

import isoflop
from isoflop.errors import IsoflopError, ModelFileError, PlanError
from isoflop.kernels import SparseLayer, SparseLinear
from isoflop.kernels.autotune.candidates import sparse_layer
from isoflop.masks import get_mask, named_masks, set_mask

SOURCE = isoflop.ModelSource(spec="isoflop:resnet18_cifar", num_classes=10, base_width=4)


@pytest.fixture(scope="module")
def trained():
    """A transformed and masked model with its plan, and outputs for an input."""
    model, plan = isoflop.transform(
        SOURCE.build(None), isoflop.SparseWide(0.75), example_inputs=(1, 3, 32, 32)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    isoflop.sparsify(model, optimizer, "rigl", plan, total_steps=10)
    for step in range(3):
        torch.manual_seed(step)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), plan


def compressed(model):
    """Return a copy whose masked layers are compressed."""
    model = copy.deepcopy(model)
    for name, module, _, mask in list(named_masks(model)):
        layer = sparse_layer(module, mask)
        assert layer is not None
        model.set_submodule(name.removesuffix(".weight"), layer)
    return model


def assert_equal(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_model_is_built_anew(trained, tmp_path):
    model, plan = trained
    isoflop.save(model, tmp_path / "m.safetensors", plan=plan, source=SOURCE)
    loaded, loaded_plan = isoflop.load(tmp_path / "m.safetensors")
    assert loaded_plan == plan
    assert_equal(loaded, model)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    # 4 bytes a value and an eighth of a byte a position.
    packed = sum(4 * layer.nnz + layer.numel / 8 for layer in plan.sparse_layers)
    rest = sum(t.nbytes for n, t in model.state_dict().items() if "mask" not in n) - sum(
        4 * layer.numel for layer in plan.sparse_layers
    )
    size = (tmp_path / "m.safetensors").stat().st_size
    assert 0 < size - packed - rest < 40_000


def test_compressed_layers_stay_compressed(trained, tmp_path):
    model, plan = trained
    small = compressed(model)
    isoflop.save(small, tmp_path / "small", plan=plan, source=SOURCE)
    loaded, _ = isoflop.load(tmp_path / "small")
    assert_equal(loaded, small)
    # A file knows nothing of how a given model stores its weights.
    for into in (copy.deepcopy(model), compressed(model)):
        for parameter in into.parameters():
            nn.init.zeros_(parameter)
        again, _ = isoflop.load(tmp_path / "small", into)
        assert again is into
        assert_equal(
            into, small if any(isinstance(m, SparseLayer) for m in into.modules()) else model
        )


def test_masks_of_the_model_give_way_to_those_of_the_file(tmp_path):
    torch.manual_seed(0)
    saved = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    set_mask(saved[0], "weight", torch.rand(8, 8) < 0.5)
    set_mask(saved[2], "weight", torch.rand(8, 8) < 0.5)
    isoflop.save(saved, tmp_path / "m")
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    set_mask(model[0], "weight", torch.rand(8, 8) < 0.1)
    set_mask(model[1], "weight", torch.rand(8, 8) < 0.1)
    parameters = list(model.parameters())
    isoflop.load(tmp_path / "m", model)
    assert_equal(model, saved)
    assert get_mask(model[1]) is None
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    sparse = [SparseLinear.from_dense(layer, torch.rand(8, 8) < 0.2) for layer in model]
    into = nn.Sequential(*sparse)
    isoflop.load(tmp_path / "m", into)
    for layer, dense in zip(sparse, saved, strict=True):
        assert torch.equal(layer.dense_weight(), dense.get_parameter("weight"))
    assert sparse[1].nnz == 64


def test_weights_that_happen_to_be_zero_stay_on_the_mask(tmp_path):
    layer = nn.Linear(4, 4)
    set_mask(layer, "weight", torch.eye(4, dtype=torch.bool))
    nn.init.zeros_(layer.weight)
    isoflop.save(layer, tmp_path / "m")
    loaded, plan = isoflop.load(tmp_path / "m", nn.Linear(4, 4))
    assert_equal(loaded, layer)
    assert plan is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
def test_types(tmp_path, dtype):
    layer = nn.Linear(5, 3).to(dtype)
    set_mask(layer, "weight", torch.rand(3, 5) < 0.5)
    isoflop.save(layer, tmp_path / "m")
    loaded, _ = isoflop.load(tmp_path / "m", nn.Linear(5, 3).to(dtype))
    assert_equal(loaded, layer)


def test_tied_weights_and_conv1d(tmp_path):
    model = gpt2().eval()
    for module in model.modules():
        if type(module).__name__ == "Conv1D":
            set_mask(module, "weight", torch.rand_like(module.get_parameter("weight")) < 0.2)
    for saved in (model, compressed(model)):
        isoflop.save(saved, tmp_path / "m")
        names = safetensors.torch.load_file(tmp_path / "m").keys()
        assert sum("wte" in name or "lm_head" in name for name in names) == 1
        for into in (gpt2().eval(), compressed(model)):
            isoflop.load(tmp_path / "m", into)
            ids = torch.tensor([[1, 2, 3]])
            torch.testing.assert_close(into(ids).logits, model(ids).logits)
            head = into.get_parameter("lm_head.weight")
            assert head is into.get_parameter("transformer.wte.weight")


def test_frozen_models_load_into_frozen_models(trained, tmp_path):
    model, _ = trained
    frozen = isoflop.freeze(model, example_inputs=(2, 3, 32, 32))
    isoflop.save(frozen, tmp_path / "m")
    other = isoflop.freeze(copy.deepcopy(model), example_inputs=(2, 3, 32, 32))
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    isoflop.load(tmp_path / "m", other)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(other(x), frozen(x))


def test_a_spec_is_enough_for_a_plain_model(tmp_path):
    model = isoflop.ModelSource(spec="torchvision:squeezenet1_1").build(None)
    isoflop.save(model, tmp_path / "m", source="torchvision:squeezenet1_1")
    loaded, plan = isoflop.load(tmp_path / "m")
    assert plan is None
    assert_equal(loaded, model)


def test_functions_that_a_file_names_are_not_run(tmp_path, user_module):
    source = isoflop.ModelSource(spec=f"{user_module}:fixed")
    model = source.build(None)
    isoflop.save(model, tmp_path / "m", source=source)
    with pytest.raises(ModelFileError, match="just because a file says so"):
        isoflop.load(tmp_path / "m")
    loaded, _ = isoflop.load(tmp_path / "m", source.build(None))
    assert_equal(loaded, model)


def test_models_of_another_shape_are_refused_unchanged(tmp_path):
    isoflop.save(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), tmp_path / "m")
    for other, message in (
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5)), "1.weight has the shape"),
        (nn.Sequential(nn.Linear(4, 4)), "1.weight is not in the model"),
        (nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), "2.weight is missing"),
    ):
        before = copy.deepcopy(other)
        with pytest.raises(ModelFileError, match=message):
            isoflop.load(tmp_path / "m", other)
        assert_equal(other, before)


def test_files_that_are_not_ours(tmp_path):
    path = tmp_path / "m"
    layer = nn.Linear(4, 4)
    with pytest.raises(ModelFileError, match="no file"):
        isoflop.load(path, layer)
    path.write_bytes(b"\x80\x04 a pickle, maybe")
    with pytest.raises(ModelFileError, match="no safetensors file"):
        isoflop.load(path, layer)
    with pytest.raises(ModelFileError, match="is a folder"):
        isoflop.load(tmp_path, layer)
    safetensors.torch.save_file(layer.state_dict(), path)
    with pytest.raises(ModelFileError, match="not written by"):
        isoflop.load(path, layer)


def test_files_cut_short(tmp_path):
    layer, path = nn.Linear(4, 4), tmp_path / "m"
    isoflop.save(layer, path)
    data = path.read_bytes()
    before = copy.deepcopy(layer)
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match="damaged"):
            isoflop.load(path, layer)
    assert_equal(layer, before)


DESCRIPTIONS = {
    "{": "is damaged",
    "[]": "is damaged",
    '{"format_version": 9}': "has format 9",
    '{"format_version": 1}': "is damaged",
    '{"format_version": 1, "weights": {"weight": {}}, "aliases": {}, "plan": null, "source": null}':
        "is damaged",
    '{"format_version": 1, "weights": {}, "aliases": {"a": "b"}, "plan": null, "source": null}':
        "is damaged",
    '{"format_version": 1, "weights": {}, "aliases": {}, "plan": null, "source": {"spec": 1}}':
        "is damaged",
    '{"format_version": 1, "weights": {}, "aliases": {}, "plan": {}, "source": null}': "no plan",
}  # fmt: skip


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_damaged_descriptions(tmp_path, description):
    layer = nn.Linear(4, 4)
    safetensors.torch.save_file(layer.state_dict(), tmp_path / "m", {"isoflop": description})
    with pytest.raises(IsoflopError, match=DESCRIPTIONS[description]):
        isoflop.load(tmp_path / "m", layer)


def test_damaged_weights_leave_the_model_unchanged(tmp_path):
    layer, path = nn.Linear(16, 16), tmp_path / "m"
    set_mask(layer, "weight", torch.rand(16, 16) < 0.5)
    isoflop.save(layer, path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    tensors["weight.values"] = tensors["weight.values"][1:]
    safetensors.torch.save_file(tensors, path, metadata)
    other = nn.Linear(16, 16)
    before = copy.deepcopy(other)
    with pytest.raises(ModelFileError, match="'weight' in the file is damaged"):
        isoflop.load(path, other)
    assert_equal(other, before)


def test_mistakes_when_saving(trained, tmp_path):
    model, plan = trained
    with pytest.raises(IsoflopError, match="no folder"):
        isoflop.save(model, tmp_path / "missing" / "m")
    with pytest.raises(PlanError, match="its own plan"):
        isoflop.save(nn.Linear(2, 2), tmp_path / "m", plan=plan)
    with pytest.raises(IsoflopError, match="meta device"):
        isoflop.save(nn.Linear(2, 2, device="meta"), tmp_path / "m")

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"count": object()}

    with pytest.raises(IsoflopError, match=r"'_extra_state' .* holds, a object"):
        isoflop.save(Extra(2, 2), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "m"
    isoflop.save(nn.Linear(4, 4), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        isoflop.save(nn.Linear(4, 4), path)
    assert path.read_bytes() == before


def test_without_a_source(tmp_path):
    isoflop.save(nn.Linear(4, 4), tmp_path / "m")
    with pytest.raises(ModelFileError, match=r"isoflop\.load\(path, model\)"):
        isoflop.load(tmp_path / "m")


def test_a_plan_that_does_not_lead_to_the_model(trained, tmp_path):
    model, plan = trained
    isoflop.save(model, tmp_path / "m", plan=plan, source="isoflop:resnet18_cifar")
    with pytest.raises(PlanError):
        isoflop.load(tmp_path / "m")
    description = json.loads(json.dumps(plan.to_dict()))
    assert isoflop.Plan.from_dict(description) == plan
