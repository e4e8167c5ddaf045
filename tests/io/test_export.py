"""Exported programs compute what PyTorch does, in the engines that they are for."""

import copy

import pytest
import torch
from tests.zoo import cifar_resnet, gpt2
from torch import nn

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.io import export
from isoflop.kernels.autotune.candidates import sparse_layer
from isoflop.masks import set_mask


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    model = cifar_resnet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.get_buffer("running_mean"), 0, 0.2)
        if isinstance(module, nn.Conv2d):
            set_mask(module, "weight", torch.rand_like(module.weight) < 0.3)
    return model.eval()


def run_pt2(path, x):
    return torch.export.load(path).module()(x)


def run_onnx(path, x):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(output)


RUN = {"pt2": run_pt2, "onnx": run_onnx}


@pytest.mark.parametrize("format", RUN)
def test_a_resnet(resnet, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    before = copy.deepcopy(resnet.state_dict())
    export(resnet, tmp_path / "m", format=format, example_inputs=(2, 3, 16, 16))
    with torch.no_grad():
        for batch in (2, 5):  # the batch may vary
            x = torch.randn(batch, 3, 16, 16)
            y = RUN[format](tmp_path / "m", x)
            torch.testing.assert_close(y, resnet(x), rtol=1e-3, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    torch.testing.assert_close(resnet.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("format", RUN)
def test_a_gpt2_with_compressed_layers(tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = gpt2().eval()
    for path, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D":
            layer = sparse_layer(module, torch.rand_like(module.get_parameter("weight")) < 0.3)
            assert layer is not None
            model.set_submodule(path, layer)
    ids = torch.randint(16, (2, 6))
    export(model, tmp_path / "m", format=format, example_inputs=ids)
    with torch.no_grad():
        torch.testing.assert_close(
            RUN[format](tmp_path / "m", ids), model(ids).logits, rtol=1e-3, atol=1e-4
        )


def test_zeros_are_in_place(resnet, tmp_path):
    export(resnet, tmp_path / "m", format="pt2", example_inputs=(2, 3, 16, 16))
    state = torch.export.load(tmp_path / "m").state_dict
    weights = [t for t in state.values() if t.ndim == 4]
    masks = [b for n, b in resnet.named_buffers() if n.endswith("_mask")]
    assert sum(int((w != 0).sum()) for w in weights) == sum(int(m.sum()) for m in masks)
    assert not any("running_mean" in name for name in state)


class ReadsValues(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_mistakes(tmp_path):
    with pytest.raises(UnknownNameError, match="onnx"):
        export(nn.Linear(2, 2), tmp_path / "m", format="onx", example_inputs=(2, 2))
    with pytest.raises(IsoflopError, match="no folder"):
        export(nn.Linear(2, 2), tmp_path / "a" / "m", format="pt2", example_inputs=(2, 2))
    with pytest.raises(IsoflopError, match="ReadsValues cannot be exported as pt2"):
        export(ReadsValues(), tmp_path / "m", format="pt2", example_inputs=torch.ones(2, 2))
    assert not list(tmp_path.iterdir())
