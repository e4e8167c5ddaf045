import functools

import numpy as np
import pytest
import torch
from torch import nn

from isoflop.lab.bench.contestant import CONTESTANTS, ContestantError
from isoflop.lab.bench.layer_case import layer_case
from isoflop.lab.bench.model_case import model_case
from isoflop.lab.bench.peers import export_onnx
from isoflop.lab.bench.run import run_bench
from isoflop.lab.models.gpt3 import Gpt3Config, gpt3

LINEAR = functools.partial(layer_case, "linear", inputs=8, outputs=12, batch=4)


def test_peers_that_are_right_wrong_dead_and_missing(peers_folder):
    (result,) = run_bench(
        LINEAR,
        [0.75],
        threads=1,
        repeats=2,
        peers=("sparselab", "sparseprop", "openvino", "deepsparse"),
        skip=("dense_compiled",),
        peers_folder=peers_folder,
        tell=lambda line: None,
    )
    assert result["seconds"]["sparselab"] == 1e-9
    assert result["notes"]["sparselab"] == "fake sparselab"
    assert "wrong values" in result["failed"]["sparseprop"]
    assert "code 3: no such instruction" in result["failed"]["openvino"]
    assert "setup_peers.sh deepsparse" in result["skipped"]["deepsparse"]
    assert not {"sparseprop", "openvino", "deepsparse"} & result["seconds"].keys()


@pytest.mark.parametrize(
    ("name", "build", "reason"),
    [
        ("sparselab", functools.partial(layer_case, "conv", image=5), "linear layers only"),
        ("torch_csr", functools.partial(layer_case, "conv", image=5), "linear layers only"),
        ("sparseprop", functools.partial(layer_case, "conv", image=5, stride=3), "strides 1 and 2"),
        ("deepsparse", functools.partial(layer_case, "linear", backward=True), "inference only"),
        ("openvino", functools.partial(layer_case, "linear", backward=True), "inference only"),
    ],
)
def test_what_a_peer_cannot_do_it_is_not_asked(peers_folder, tmp_path, name, build, reason):
    case = build(sparsity=0.5, inputs=4, outputs=4, batch=2, threads=1, folder=tmp_path)
    assert reason in (CONTESTANTS.get(name)().unsuited(case, peers_folder) or "")


def evaluate(path, inputs):
    onnx = pytest.importorskip("onnx")
    session = pytest.importorskip("onnx.reference").ReferenceEvaluator(onnx.load(path))
    return session.run(None, {session.input_names[0]: inputs.numpy()})[0]


def test_models_are_exported_to_onnx(tmp_path):
    case = model_case(
        "inference",
        "isoflop:resnet8_digits",
        sparsity=0.75,
        batch=2,
        threads=1,
        folder=tmp_path,
    )
    path = tmp_path / "model.onnx"
    export_onnx(case.sparse.model, case.sparse.inputs, path)
    found = evaluate(path, case.sparse.inputs)
    np.testing.assert_allclose(found, case.sparse.reference["output"], rtol=1e-3, atol=1e-4)


def test_what_the_old_exporter_does_not_know_the_new_one_exports(tmp_path):
    torch.manual_seed(0)
    model = gpt3(Gpt3Config(1, 16, 2), vocab_size=8, context=6).eval()
    tokens = torch.randint(8, (2, 6))
    path = tmp_path / "model.onnx"
    export_onnx(model, tokens, path)
    with torch.no_grad():
        right = model(tokens).logits
    np.testing.assert_allclose(evaluate(path, tokens), right, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_exported_leaves_no_file(tmp_path):
    class Eigenvalues(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvalsh(x)

    with pytest.raises(ContestantError, match="no ONNX file"):
        export_onnx(Eigenvalues(), torch.eye(3), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
