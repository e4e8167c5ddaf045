"""2:4 products of PyTorch: what is offered, packing, layers and gradients.

Without a GPU the product is replaced by a dense one of what packing holds; all else is the same.
"""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)
from transformers.pytorch_utils import Conv1D

import isoflop
from isoflop.errors import KernelError, NoEffectWarning
from isoflop.kernels import SemiStructuredLinear, accelerate
from isoflop.kernels.autotune import accelerate as choose
from isoflop.kernels.autotune import timing
from isoflop.kernels.autotune.accelerate import accelerate_
from isoflop.kernels.semi_structured import (
    disable,
    enable,
    is_two_four,
    packing,
    why_not,
)
from isoflop.masks import named_masks, set_mask
from isoflop.patterns import NM, Pattern, Transposable

BOTH_WAYS, ALONG_INPUTS = Transposable(n=2, m=4), NM(n=2, m=4)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# PyTorch says once that its interface may change; `packing` hides that, and is not called here.
pytestmark = pytest.mark.filterwarnings("ignore:.*prototype stage")


class OnCpu(SparseSemiStructuredTensorCUTLASS):
    """CUTLASS's packing with a dense product."""

    @classmethod
    def from_dense(cls, original_tensor, alg_id=0):
        assert original_tensor.is_contiguous()
        packed, meta = sparse_semi_structured_from_dense_cutlass(original_tensor)
        return cls(original_tensor.shape, packed, meta, None, None, None)

    def _mm(self, B, *, bias=None, should_transpose_dense=False, **kwargs):
        dense = sparse_semi_structured_to_dense_cutlass(self.packed, self.meta)
        y = dense @ (B.t() if should_transpose_dense else B)
        y = y if bias is None else y + bias[:, None]
        return y.t().contiguous() if should_transpose_dense else y


def small_integers(*shape):
    """Values whose sums of products are exact in bfloat16."""
    return torch.randint(-1, 2, shape).to(torch.bfloat16)


def layer(
    inputs=64, outputs=128, *, pattern: Pattern = BOTH_WAYS, fan_in_fan_out=False, bias=True, seed=0
):
    torch.manual_seed(seed)
    made = Conv1D(outputs, inputs) if fan_in_fan_out else nn.Linear(inputs, outputs, bias=bias)
    made = made.to(torch.bfloat16)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(small_integers(*parameter.shape))
    mask = pattern.random((outputs, inputs), pattern.count((outputs, inputs), 0))
    set_mask(made, "weight", mask.t().contiguous() if fan_in_fan_out else mask)
    return made


@pytest.mark.parametrize("pattern", [BOTH_WAYS, ALONG_INPUTS])
@pytest.mark.parametrize("shape", [(32, 64), (96, 128), (64, 192)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packing_there_and_back_is_exact(pattern, shape, dtype):
    weight = torch.randn(shape).to(dtype) * pattern.random(shape, pattern.count(shape, 0))
    weight[weight > 2] = 0  # active weights may be zero
    matrices = [weight]
    if pattern is BOTH_WAYS and shape[0] % 64 == 0:
        matrices.append(weight.t().contiguous())
    for matrix in matrices:
        packed = OnCpu.from_dense(matrix)
        assert packed.values().shape == (matrix.shape[0], matrix.shape[1] // 2)
        back = sparse_semi_structured_to_dense_cutlass(packed.packed, packed.meta)
        assert torch.equal(back, matrix)


def test_two_four():
    row = torch.tensor([[True, True, False, False, False, True, True, False]])
    assert is_two_four(row)
    assert not is_two_four(row[:, :6])
    assert not is_two_four(row.roll(2))  # three of the first four
    assert not is_two_four(torch.zeros(4, 4, dtype=torch.bool))
    assert is_two_four(BOTH_WAYS.random((8, 8), 32).t())


@pytest.mark.parametrize("kind", [OnCpu, SparseSemiStructuredTensorCUSPARSELT])
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_eligible(kind, fan_in_fan_out):
    assert why_not(layer(fan_in_fan_out=fan_in_fan_out), kind, training=True) is None
    assert why_not(layer(fan_in_fan_out=fan_in_fan_out), kind, training=False) is None


def test_not_eligible():
    reason = functools.partial(why_not, kind=OnCpu, training=False)
    assert reason(layer(32, 32)) == (
        "has 32 outputs and 32 inputs, which are no multiples of 32 and 64: use multiple_of=64 in the "
        "transform"
    )
    assert why_not(layer(64, 32), OnCpu, training=False) is None
    assert "multiples of 64 and 64" in str(why_not(layer(64, 32), OnCpu, training=True))
    assert why_not(layer(16, 16), SparseSemiStructuredTensorCUSPARSELT, training=True) is None
    assert "use model.bfloat16()" in str(reason(layer().float()))
    one_way = layer(pattern=ALONG_INPUTS)
    assert reason(one_way) is None
    assert "not 2:4 both ways" in str(why_not(one_way, OnCpu, training=True))
    wrong = layer()
    wrong.get_buffer("weight_mask")[0, :4] = True
    assert "not 2:4 along its inputs" in str(reason(wrong))
    conv = nn.Conv2d(64, 64, 1).to(torch.bfloat16)
    set_mask(conv, "weight", torch.ones_like(conv.weight, dtype=torch.bool))
    assert "not a linear layer" in str(reason(conv))


def test_autocast_decides_the_dtype():
    master = layer().float()
    assert why_not(master, OnCpu, training=True) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not(master, OnCpu, training=True) is None
    with torch.autocast("cpu", torch.float16):
        assert SemiStructuredLinear.from_dense(master, OnCpu).weight.dtype == torch.float16


def test_no_packing_on_cpus():
    assert packing(torch.device("cpu")) is None


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("pattern", [BOTH_WAYS, ALONG_INPUTS])
def test_packed_layers_compute_the_same(fan_in_fan_out, pattern):
    dense = layer(fan_in_fan_out=fan_in_fan_out, pattern=pattern)
    packed = SemiStructuredLinear.from_dense(dense, OnCpu)
    for x in (small_integers(3, 5, 64), small_integers(64), small_integers(64, 2).t()):
        assert torch.equal(packed(x), dense(x))
    assert not any(p.requires_grad for p in packed.parameters())
    assert "in_features=64, out_features=128, bias=True" in str(packed)


def test_packed_layers_without_a_bias():
    dense = layer(bias=False)
    x = small_integers(7, 64)
    assert torch.equal(SemiStructuredLinear.from_dense(dense, OnCpu)(x), dense(x))


def gradients(module, x, *, autocast=False):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = module(x)
    wanted = [x, *module.parameters()]
    seed = torch.arange(y.numel()).remainder(3).sub(1).reshape(y.shape).to(y.dtype)
    return y, torch.autograd.grad(y, wanted, seed)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("shape", [(6, 64), (2, 3, 64)])
def test_gradients_are_those_of_the_dense_layer(fan_in_fan_out, shape):
    dense = layer(fan_in_fan_out=fan_in_fan_out)
    trained = copy.deepcopy(dense)
    enable(trained, OnCpu)
    x = small_integers(*shape)
    y, expected = gradients(dense, x)
    ours, found = gradients(trained, x)
    assert torch.equal(ours, y)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert int(found[1].ne(0).sum()) > trained.weight.numel() // 2  # off the mask too


def test_the_product_is_packed_both_ways(monkeypatch):
    shapes = []

    class Counting(OnCpu):
        @classmethod
        def from_dense(cls, original_tensor, alg_id=0):
            shapes.append(tuple(original_tensor.shape))
            return super().from_dense(original_tensor)

    trained = layer()
    enable(trained, Counting)
    gradients(trained, small_integers(4, 64))
    assert shapes == [(128, 64), (64, 128)]
    shapes.clear()
    trained(small_integers(4, 64)).sum().backward()  # the input needs no gradient
    assert shapes == [(128, 64)]


def test_master_weights_under_autocast():
    dense = layer().float()
    trained = copy.deepcopy(dense)
    enable(trained, OnCpu)
    x = small_integers(4, 64).float()
    y, expected = gradients(dense, x, autocast=True)
    ours, found = gradients(trained, x, autocast=True)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, y)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    # Without autocast the layer computes in float32, by itself.
    assert torch.equal(trained(x + 1e-6), dense(x + 1e-6))


def test_enabled_layers_stay_what_they_are():
    trained = layer()
    state = trained.state_dict()
    enable(trained, OnCpu)
    assert type(trained) is nn.Linear
    assert trained.state_dict().keys() == state.keys()
    copied = copy.deepcopy(trained)
    with torch.no_grad():
        copied.weight.zero_()
        copied.bias.zero_()
    x = small_integers(2, 64)
    assert copied(x).count_nonzero() == 0
    assert trained(x).count_nonzero() > 0
    disable(trained)
    assert "forward" not in vars(trained)


def test_a_mask_that_changed():
    trained = layer()
    enable(trained, OnCpu)
    x = small_integers(2, 64)
    trained(x)
    mask = trained.get_buffer("weight_mask")
    mask.copy_(BOTH_WAYS.random((128, 64), 128 * 32))
    with torch.no_grad():
        trained.weight.mul_(mask)
    assert torch.equal(trained(x), F.linear(x, trained.weight, trained.bias))
    mask[:] = True
    with pytest.raises(KernelError, match="no longer 2:4 both ways"):
        trained(x)


def test_compiled():
    dense = layer()
    trained = copy.deepcopy(dense)
    enable(trained, OnCpu)
    x = small_integers(2, 64)
    compiled = torch.compile(nn.Sequential(trained, nn.ReLU()), backend="eager")
    assert torch.equal(compiled(x), dense(x).relu())


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Pretend that the processor is a GPU, on which 2:4 products take less time."""
    seconds = {"dense": 9.0, "sparse": 1.0, "before": 2.0, "after": 1.0}

    def made_up(contestants):
        for run in contestants.values():
            run()
        return {name: seconds[name] for name in contestants}

    monkeypatch.setattr(choose, "packing", lambda _: OnCpu)
    monkeypatch.setattr(timing, "measure", made_up)
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path))
    return seconds


def net():
    layers = [
        layer(),
        nn.ReLU(),
        layer(128, 64, fan_in_fan_out=True, seed=1),
        layer(64, 10, seed=2),
    ]
    return nn.Sequential(*layers)


def test_inference(gpu):
    model = net()
    fast, report = accelerate(model, example_inputs=(4, 64))
    assert report.accelerated
    assert [(c.path, c.chosen, c.nnz) for c in report.layers] == [
        ("0", "sparse", 4096),
        ("2", "sparse", 4096),
    ]
    assert report.skipped.keys() == {"3"}
    assert "3 has 10 outputs" in str(report)
    assert [type(m) for m in fast.children()] == [
        SemiStructuredLinear, nn.ReLU, SemiStructuredLinear, nn.Linear,
    ]  # fmt: skip
    x = small_integers(4, 64)
    assert torch.equal(fast(x), model(x))
    assert len(list(named_masks(model))) == 3
    gpu["dense"] = 0.5
    dense, report = accelerate(model, example_inputs=(4, 64), cache=False)
    assert not any(isinstance(m, SemiStructuredLinear) for m in dense.modules())
    assert {choice.chosen for choice in report.layers} == {"dense"}


def test_training(gpu):
    model = net()
    parameters, reference = dict(model.named_parameters()), net()
    report = accelerate_(model, example_inputs=(4, 64))
    assert report.accelerated
    assert [choice.path for choice in report.layers] == ["0", "2"]
    assert ["forward" in vars(m) for m in model] == [True, False, True, False]
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    x = small_integers(4, 64)
    for either in (model, reference):
        either(x).float().square().sum().backward()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    # Once more, with the opposite outcome; and a copy for inference.
    gpu["after"] = 3.0
    report = accelerate_(model, example_inputs=(4, 64), cache=False)
    assert not report.accelerated
    assert not any("forward" in vars(m) for m in model)


def test_inference_after_training(gpu):
    model = net()
    accelerate_(model, example_inputs=(4, 64))
    fast, _ = accelerate(model, example_inputs=(4, 64))
    assert isinstance(fast.get_submodule("0"), SemiStructuredLinear)
    assert not any("forward" in vars(m) for m in fast.children())
    assert ["forward" in vars(m) for m in model.children()] == [True, False, True, False]


def test_sparse_training(gpu):
    """RigL rewires the masks of layers that run on 2:4 products."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        isoflop.RigL(update_every=1),
        isoflop.plain_plan(model, 0.5, dense_ends=False),
        pattern="2:4-T",
        total_steps=10,
    )
    accelerate_(model, example_inputs=(4, 64))
    before = [mask.clone() for _, _, _, mask in named_masks(model)]
    for _ in range(3):
        model(torch.randn(8, 64, dtype=torch.bfloat16)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = [mask for _, _, _, mask in named_masks(model)]
    assert not any(map(torch.equal, before, after))
    assert all(is_two_four(mask) and is_two_four(mask.t()) for mask in after)
    assert sparsifier.density() == 0.5


def test_nothing_to_accelerate(gpu):
    with pytest.warns(NoEffectWarning, match=r"0 computes in torch\.float32.*\(and 2 more\)"):
        _, report = accelerate(net().float(), example_inputs=(4, 64))
    assert report.skipped.keys() == {"0", "2", "3"}
    with pytest.warns(NoEffectWarning, match="no masked layer"):
        accelerate(nn.Linear(64, 64), example_inputs=(4, 64))


def test_other_devices():
    with pytest.raises(KernelError, match="on meta"):
        accelerate(nn.Linear(4, 4, device="meta"), example_inputs=(1, 4))


@needs_gpu
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu(mode, dtype, tmp_path):
    device = torch.device("cuda:0")
    kind = packing(device)
    if kind is None:
        pytest.skip("PyTorch has no 2:4 products for this GPU")
    dense = layer(256, 512).to(device, dtype)
    x = torch.randn(128, 256, device=device).to(dtype)
    if mode == "inference":
        torch.testing.assert_close(SemiStructuredLinear.from_dense(dense, kind)(x), dense(x))
    else:
        trained = copy.deepcopy(dense)
        enable(trained, kind)
        y, expected = gradients(dense, x)
        ours, found = gradients(trained, x)
        torch.testing.assert_close(ours, y)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    model = nn.Sequential(dense, nn.ReLU())
    inputs = {"example_inputs": x, "cache": tmp_path / "times.json"}
    if mode == "inference":
        fast, report = accelerate(model, **inputs)
    else:
        fast, report = model, accelerate_(model, **inputs)
    assert [choice.path for choice in report.layers] == ["0"]
    torch.testing.assert_close(fast(x), model(x))
