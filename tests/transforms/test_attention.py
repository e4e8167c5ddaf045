"""Attention with projections of its own computes what `nn.MultiheadAttention` does."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoflop
from isoflop.flops.trace import profile, trace
from isoflop.transforms import TRANSFORMS
from isoflop.transforms.attention import SeparateAttention, separate_attention

LAYER_TRANSFORMS = ("parallel", "factorized", "doped", "low_rank")
E, HEADS, L, S, N = 8, 2, 3, 5, 4


def attention(**options: Any) -> nn.MultiheadAttention:
    """Attention with random biases."""
    module = nn.MultiheadAttention(E, HEADS, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def inputs(*, batched: bool = True, batch_first: bool = False, **sizes: int) -> list[Tensor]:
    """Random queries, keys and values."""
    widths = (E, sizes.get("kdim", E), sizes.get("vdim", E))
    tensors = [torch.randn(n, N, w) for n, w in zip((L, S, S), widths, strict=True)]
    if not batched:
        return [x[:, 0] for x in tensors]
    return [x.transpose(0, 1) for x in tensors] if batch_first else tensors


def separated(model: nn.Module, example_inputs: Any, keep: tuple[str, ...] = ()) -> Any:
    return separate_attention(model, trace(model, example_inputs), keep)


def ignored(*shape: int) -> Tensor:
    """A random mask that leaves something to attend to everywhere."""
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return mask


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "padding": {"key_padding_mask": ignored(N, S)},
    "float_padding": {"key_padding_mask": torch.randn(N, S)},
    "pairs": {"attn_mask": ignored(L, S)},
    "float_pairs_by_head": {"attn_mask": torch.randn(N * HEADS, L, S)},
    "both": {"attn_mask": ignored(L, S), "key_padding_mask": ignored(N, S)},
    "causal": {
        "attn_mask": torch.ones(L, S, dtype=torch.bool).triu(1),
        "is_causal": True,
    },
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "batch_first": True},
        {"add_bias_kv": True},
        {"add_zero_attn": True, "batch_first": True},
        {"add_bias_kv": True, "add_zero_attn": True},
        {"kdim": 6, "vdim": 10},
        {"kdim": 6, "add_bias_kv": True, "bias": False},
        {"dropout": 0.5},
    ],
)
def test_outputs_and_weights_are_equal(options, mask):
    dense = attention(**options)
    args = inputs(**{k: v for k, v in options.items() if k in ("batch_first", "kdim", "vdim")})
    new = separated(dense, (*args,))
    assert isinstance(new, SeparateAttention)
    for more in ({}, {"average_attn_weights": False}, {"need_weights": False}):
        kwargs = MASKS[mask] | more
        torch.manual_seed(0)
        expected, expected_weights = dense(*args, **kwargs)
        torch.manual_seed(0)
        output, weights = new(*args, **kwargs)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_unbatched_inputs(batch_first, need_weights):
    dense = attention(batch_first=batch_first)
    args = inputs(batched=False)
    new = separated(dense, (*args,))
    mask = ignored(S)
    expected = dense(*args, key_padding_mask=mask, need_weights=need_weights)
    output = new(*args, key_padding_mask=mask, need_weights=need_weights)
    for one, other in zip(output, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradients_are_those_of_the_joint_matrix():
    dense = attention(add_bias_kv=True)
    x = inputs()[0]
    new = separated(dense, (x, x, x))
    dense(x, x, x)[0].square().sum().backward()
    expected = {name: p.grad for name, p in dense.named_parameters()}
    dense.zero_grad()
    new(x, x, x)[0].square().sum().backward()
    projections = [new.q_proj, new.k_proj, new.v_proj]
    joint = torch.cat([p.weight.grad for p in projections])
    torch.testing.assert_close(joint, expected["in_proj_weight"])
    torch.testing.assert_close(
        torch.cat([p.bias.grad for p in projections]), expected["in_proj_bias"]
    )
    torch.testing.assert_close(new.bias_k.grad, expected["bias_k"])


def test_wrong_arguments_are_refused():
    new = separated(attention(), (*inputs(),))
    with pytest.raises(RuntimeError, match="no attn_mask"):
        new(*inputs(), is_causal=True)
    with pytest.raises(ValueError, match="key must have 8 channels, not 6"):
        new(*inputs(kdim=6))
    with pytest.raises(ValueError, match="bool or floating point"):
        new(*inputs(), attn_mask=torch.zeros(L, S, dtype=torch.long))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformer_encoder(batch_first, mode, norm_first):
    layer = nn.TransformerEncoderLayer(
        E, HEADS, 16, batch_first=batch_first, dropout=0.0, norm_first=norm_first
    )
    nested = batch_first and not norm_first
    dense = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).train(mode == "train")
    x = torch.randn(N, L, E) if batch_first else torch.randn(L, N, E)
    padding = torch.tensor([[False] * L] * (N - 1) + [[False] * (L - 1) + [True]])
    new = separated(dense, (x,))
    assert new is not dense
    assert all(isinstance(layer.self_attn, SeparateAttention) for layer in new.layers)
    with torch.set_grad_enabled(mode != "no_grad"):
        outputs = [model(x, src_key_padding_mask=padding) for model in (dense, new)]
        # The fast path of the dense encoder puts zeros where the padding is.
        kept = [(y if batch_first else y.transpose(0, 1))[~padding] for y in outputs]
        torch.testing.assert_close(*kept)
        mask = nn.Transformer.generate_square_subsequent_mask(L)
        torch.testing.assert_close(new(x, mask, is_causal=True), dense(x, mask, is_causal=True))
    assert profile(new, (x,)).macs == profile(dense, (x,)).macs


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_a_whole_transformer(batch_first, training):
    # Dropout draws in the order of memory, which may differ.
    options: Any = {"batch_first": batch_first, "dropout": 0.0}
    dense = nn.Transformer(E, HEADS, 1, 2, 16, **options).train(training)
    shapes = ((N, S, E), (N, L, E)) if batch_first else ((S, N, E), (L, N, E))
    args = tuple(torch.randn(shape) for shape in shapes)
    new = separated(dense, args)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    kwargs = {"tgt_mask": mask, "tgt_is_causal": True}
    torch.testing.assert_close(new(*args, **kwargs), dense(*args, **kwargs))
    assert profile(new, args).macs == profile(dense, args).macs
    assert sum(isinstance(m, SeparateAttention) for m in new.modules()) == 5


class Block(nn.Module):
    """Attention between two Linears."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(E, E), nn.Linear(E, 2)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("name", LAYER_TRANSFORMS)
@pytest.mark.parametrize("options", [{}, {"kdim": E, "bias": False, "add_bias_kv": True}])
def test_every_projection_is_replaced_and_named_in_the_plan(name, options):
    x = torch.randn(N, L, E)
    with torch.no_grad():  # must not freeze the parts of the joint matrix
        model, plan = isoflop.transform(
            Block(attention(**options)),
            TRANSFORMS.get(name)(0.5, dense_ends=name != "low_rank"),
            example_inputs=(x,),
        )
    sources = {layer.source: layer for layer in plan.sparse_layers}
    paths = [f"attention.{x}" for x in ("q_proj", "k_proj", "v_proj", "out_proj")]
    assert set(paths) <= set(sources)
    for path in paths:
        assert sources[path].dense_shape == (E, E)
        assert sources[path].source_macs == N * L * E * E
    assert plan.dense_macs == profile(Block(attention(**options)), (x,)).macs
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sparse_wide_keeps_the_joint_matrix():
    config = isoflop.SparseWide(0.5, dense_ends=False)
    model, plan = isoflop.transform(Block(attention()), config, example_inputs=(N, L, E))
    assert type(model.get_submodule("attention")) is nn.MultiheadAttention
    assert "attention.in_proj_weight" in {layer.parameter for layer in plan.sparse_layers}


def test_excluded_attention_stays_as_it_is():
    config = isoflop.SparseParallel(0.5, dense_ends=False, exclude=("attention",))
    model, plan = isoflop.transform(Block(attention()), config, example_inputs=(N, L, E))
    assert type(model.get_submodule("attention")) is nn.MultiheadAttention
    assert {layer.source for layer in plan.sparse_layers} == {"stem", "head"}


@pytest.mark.parametrize("exclude", [[], ["*.self_attn"], ["*.linear?"]])
@pytest.mark.parametrize("name", ["parallel", "factorized", "doped"])
def test_evaluation_does_not_bypass_what_was_replaced(name, exclude):
    layer = nn.TransformerEncoderLayer(E, HEADS, 16, batch_first=True)
    dense = nn.Sequential(nn.Linear(E, E), nn.TransformerEncoder(layer, 2), nn.Linear(E, E))
    model: Any
    model, _ = isoflop.transform(
        dense, name, sparsity=0.5, example_inputs=(N, L, E), exclude=exclude, scope="layers"
    )
    x = torch.randn(N, L, E)
    padding = torch.tensor([[False] * (L - 1) + [True]] * N)
    model.eval()
    x = model[0](x)
    expected = model[1](x, src_key_padding_mask=padding)[:, :-1]
    with torch.no_grad():
        output = model[1](x, src_key_padding_mask=padding)[:, :-1]
    torch.testing.assert_close(output, expected)


def test_patterns_may_name_single_projections():
    model, plan = isoflop.transform(
        Block(attention()),
        isoflop.SparseParallel(0.5, exclude=("*.[kv]_proj",)),
        example_inputs=(N, L, E),
    )
    assert {layer.source for layer in plan.sparse_layers} == {
        "attention.q_proj",
        "attention.out_proj",
    }
    assert type(model.get_submodule("attention.k_proj")) is nn.Linear


def test_attention_that_others_reach_into_is_left_alone():
    class Subclass(nn.MultiheadAttention):
        pass

    class Reader(Block):
        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.attention, nn.MultiheadAttention)
            weight = self.attention.out_proj.get_parameter("weight")
            return super().forward(F.linear(x, weight))

    tied = nn.Sequential(Block(attention()), nn.Linear(2, E), Block(attention()))
    tied.get_submodule("0.attention").in_proj_weight = tied.get_submodule(
        "2.attention"
    ).in_proj_weight
    for model in (Block(Subclass(E, HEADS)), Reader(attention()), tied):
        assert separated(model, (N, L, E)) is model
        _, plan = isoflop.transform(
            model, isoflop.SparseParallel(0.5, dense_ends=False), example_inputs=(N, L, E)
        )
        assert not any("proj" in layer.source for layer in plan.sparse_layers)


def test_attention_used_twice_stays_one():
    shared = attention()
    model = nn.Sequential(Block(shared), nn.Linear(2, E), Block(shared))
    new, plan = isoflop.transform(model, isoflop.SparseParallel(0.5), example_inputs=(N, L, E))
    assert new.get_submodule("0.attention") is new.get_submodule("2.attention")
    layer = next(x for x in plan.sparse_layers if x.source == "0.attention.q_proj")
    assert layer.macs_per_weight == 2 * N * L


def test_the_dense_model_is_not_changed():
    model = Block(attention())
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    isoflop.transform(model, isoflop.SparseFactorized(0.5), example_inputs=(N, L, E))
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(id(after[n]) == i and torch.equal(after[n], v) for n, (i, v) in before.items())
