"""What kinds of operations there are: products, element-wise work, moves of data.

An operation that is in none of these lists costs what nobody knows, and is never taken for free.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import flop_counter
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

_MOVES = frozenset((
    "alias_copy", "as_strided", "as_strided_scatter", "detach",
    "squeeze", "swapaxes", "t", "unsqueeze", "block_diag", "cat", "channel_shuffle", "chunk_cat",
    "clone", "coalesce", "constant_pad_nd", "copy", "diag_embed", "diagonal_scatter", "embedding",
    "expand_copy", "flip", "gather", "im2col", "index", "index_copy", "index_put", "index_select",
    "lift_fresh_copy", "narrow_copy", "pack_padded_sequence", "permute_copy", "pin_memory",
    "pixel_shuffle", "pixel_unshuffle", "put", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "repeat", "repeat_interleave", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "reshape_copy", "resize", "resize_as", "roll", "rot90", "select_copy",
    "select_scatter", "slice_copy", "slice_scatter", "split_copy", "split_with_sizes_copy", "stack",
    "t_copy", "take", "to_copy", "transpose", "transpose_copy", "tril", "triu", "unbind_copy",
    "unfold_copy", "unsafe_index", "unsafe_split", "unsafe_split_with_sizes", "unsafe_view",
    "unsqueeze_copy", "view_copy", "coalesced", "col_indices", "crow_indices", "indices",
    "sparse_compressed_tensor", "sparse_compressed_tensor_unsafe", "sparse_coo_tensor",
    "sparse_coo_tensor_unsafe", "sparse_coo_tensor_with_dims",
    "sparse_coo_tensor_with_dims_and_tensors", "to_dense", "to_sparse", "to_sparse_bsc",
    "to_sparse_bsr", "to_sparse_csc", "to_sparse_csr", "values",
))  # fmt: skip
"""Operations that only move data."""

_ELEMENTWISE = frozenset((
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "add_relu", "addr", "affine_grid_generator", "all", "allclose", "amax",
    "amin", "aminmax", "any", "arange", "argmax", "argmin", "assert_async",
    "assert_tensor_metadata", "avg_pool1d", "avg_pool2d", "avg_pool3d", "batch_norm",
    "batch_norm_elemt", "batch_norm_gather_stats", "batch_norm_gather_stats_with_counts",
    "batch_norm_no_update", "batch_norm_stats", "batch_norm_update_stats", "batch_norm_with_update",
    "batch_norm_with_update_functional", "bernoulli", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "bincount", "binomial", "bucketize", "cauchy", "col2im",
    "complex", "conj_physical", "count_nonzero", "ctc_loss", "cummax", "cummax_helper", "cummin",
    "cummin_helper", "cumprod", "cumsum", "dequantize", "dist", "dropout", "embedding_bag",
    "embedding_bag_forward_only", "embedding_renorm", "empty", "empty_like", "empty_permuted",
    "empty_strided", "equal", "erfinv", "exponential", "eye",
    "fake_quantize_learnable_per_channel_affine", "fake_quantize_learnable_per_tensor_affine",
    "fake_quantize_per_channel_affine_cachemask", "fake_quantize_per_tensor_affine_cachemask",
    "fill", "floor_divide", "fractional_max_pool2d", "fractional_max_pool3d", "full", "full_like",
    "functional_assert_async", "fused_dropout", "fused_moving_avg_obs_fq_helper", "geometric",
    "glu", "glu_jvp", "grid_sampler_2d", "grid_sampler_2d_cpu_fallback", "grid_sampler_3d",
    "hardswish", "histc", "huber_loss", "index_add", "index_fill", "index_reduce", "is_all_true",
    "is_any_true", "is_nonzero", "isin", "isinf", "isnan", "item", "kthvalue", "linalg_cross",
    "linalg_vector_norm", "linspace", "local_scalar_dense", "log_normal", "log_sigmoid_forward",
    "log_softmax", "logcumsumexp", "logspace", "logsumexp", "masked_fill", "masked_scale",
    "masked_scatter", "masked_select", "masked_softmax", "max", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "max_unpool2d", "max_unpool3d", "mean", "median", "min", "mode",
    "mse_loss", "multi_margin_loss", "multilabel_margin_loss_forward", "multinomial", "nanmedian",
    "nansum", "native_batch_norm", "native_batch_norm_legit", "native_batch_norm_legit_functional",
    "native_batch_norm_legit_no_training", "native_dropout", "native_group_norm",
    "native_layer_norm", "native_norm", "new_empty", "new_empty_strided", "new_full", "new_ones",
    "new_zeros", "nll_loss2d_forward", "nll_loss_forward", "nonzero", "nonzero_static", "norm",
    "normal", "normal_functional", "ones", "ones_like", "poisson", "polar", "powsum",
    "prelu_kernel", "prod", "quantize_per_channel", "quantize_per_tensor", "rand", "rand_like",
    "randint", "randint_like", "randn", "randn_like", "random", "randperm", "range", "renorm",
    "rrelu_with_noise", "rrelu_with_noise_functional", "safe_softmax", "sample_dirichlet",
    "scalar_tensor", "scatter", "scatter_add", "scatter_reduce", "searchsorted", "segment_reduce",
    "smooth_l1_loss", "soft_margin_loss", "softmax", "sort", "sparse_log_softmax", "sparse_mask",
    "sparse_mask_projection", "sparse_softmax", "sparse_sum", "spdiags", "standard_gamma", "std",
    "std_mean",
    "sum", "thnn_fused_gru_cell", "thnn_fused_lstm_cell", "topk", "trace",
    "transform_bias_rescale_qkv", "tril_indices", "triu_indices", "uniform",
    "unique", "unique2", "unique_consecutive", "unique_dim", "unsafe_index_put",
    "unsafe_masked_index", "upsample_bicubic2d", "upsample_bicubic2d_aa", "upsample_bilinear2d",
    "upsample_bilinear2d_aa", "upsample_lanczos2d_aa", "upsample_linear1d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_nearest_exact1d",
    "upsample_nearest_exact2d", "upsample_nearest_exact3d", "upsample_trilinear3d", "var",
    "var_mean", "weight_norm_interface", "zero", "zeros", "zeros_like",
))  # fmt: skip
"""Element-wise operations besides those that PyTorch tags so, normalisations, reductions, pooling,
interpolation, sorting, random numbers and constants."""

_OTHER_ELEMENTWISE = frozenset(
    {
        "isoflop::batch_norm",
        "torchvision::nms",
        "torchvision::ps_roi_align",
        "torchvision::ps_roi_pool",
        "torchvision::roi_align",
        "torchvision::roi_pool",
    }
)
_COLLECTIVES = ("_c10d_functional", "c10d", "c10d_functional")

_PICKS = frozenset((
    "index", "index_select", "gather", "take", "embedding", "unsafe_index", "repeat_interleave",
    "tril", "triu",
))  # fmt: skip
_KEEP_STORED = frozenset((
    "abs", "alias_copy", "clone", "coalesce", "detach", "div", "mul", "neg", "permute", "positive",
    "relu", "t", "to_copy", "to_sparse", "to_sparse_bsc", "to_sparse_bsr", "to_sparse_csc",
    "to_sparse_csr", "transpose",
))  # fmt: skip
_ZEROS = frozenset(["zeros", "zeros_like", "new_zeros", "zero"])
_FILLED = frozenset(["fill", "full", "full_like", "new_full", "scalar_tensor"])
_CONSTANTS = frozenset((
    "arange", "empty", "eye", "full", "ones", "tril_indices", "triu_indices", "zeros",
))  # fmt: skip

_SCALES = frozenset(["mul", "div", "neg", "abs", "relu", "tanh"])

_KEEP_ZEROS = _SCALES | frozenset((
    "asin", "asinh", "atan", "celu", "elu", "erf", "expm1", "floor", "gelu", "hardtanh",
    "leaky_relu", "log1p", "positive", "prelu_kernel", "real", "conj_physical", "round", "sgn",
    "sign", "silu", "sin", "sinh", "softshrink", "sqrt", "square", "tan", "trunc",
))  # fmt: skip


def kind_of(operation: Any) -> str:
    """Return what an operation of a dispatch mode does.

    Returns:
        ``"product"``, if its cost is known by a formula; ``"view"``; ``"move"``; ``"elementwise"``;
        or ``"unknown"``.
    """
    # Formulas may be registered at any time, the rest is fixed.
    product = has_formula(packet_of(operation))
    return "product" if product else _other_kind(operation)


@functools.cache
def _other_kind(operation: Any) -> str:
    if getattr(operation, "is_view", False):
        return "view"
    namespace, name = full_name(operation).split("::", 1)
    if (namespace == "aten" and name in _MOVES) or namespace in _COLLECTIVES:
        return "move"
    if torch.Tag.pointwise in getattr(operation, "tags", ()):
        return "elementwise"
    if namespace in ("aten", "prims"):
        forward = name.removesuffix("_backward").removesuffix("_double")
        of_lists = name.startswith("foreach_") and not name.endswith("mm")
        if forward in _ELEMENTWISE | _MOVES or of_lists:
            return "elementwise"
    return "elementwise" if f"{namespace}::{name}" in _OTHER_ELEMENTWISE else "unknown"


def packet_of(operation: Any) -> Any:
    """Return all overloads of an operation together."""
    return getattr(operation, "_overloadpacket", operation)


@functools.cache
def full_name(operation: Any) -> str:
    """Return the name of an operation, such as ``"aten::relu"``, in-place or private ones alike."""
    packet = packet_of(operation)
    name = getattr(packet, "_qualified_op_name", None) or f"other::{packet}"
    namespace, _, own = name.rpartition("::")
    return f"{namespace or 'other'}::{own.strip('_')}"


@functools.cache
def scales(operation: Any) -> bool:
    """Return whether an operation multiplies a weight, so that it stays that weight."""
    return full_name(operation).removeprefix("aten::") in _SCALES


def keeps_zeros(operation: Any) -> bool:
    """Return whether an element-wise operation makes zeros of zeros."""
    return full_name(operation).removeprefix("aten::") in _KEEP_ZEROS


@functools.cache
def is_picking(operation: Any) -> bool:
    """Return whether an operation may take some elements several times and others not at all."""
    return full_name(operation).removeprefix("aten::") in _PICKS


@functools.cache
def keeps_stored(operation: Any) -> bool:
    """Return whether the result of an operation stores as many numbers as its one sparse operand."""
    return full_name(operation).removeprefix("aten::") in _KEEP_STORED


def makes_zeros(operation: Any, args: Any) -> bool:
    """Return whether the results of an operation are zero all over."""
    name = full_name(operation).removeprefix("aten::")
    return name in _ZEROS or (name in _FILLED and any(_is_zero(a) for a in args[-1:]))


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float, complex)) and value == 0


@functools.cache
def makes_integers(operation: Any) -> bool:
    """Return whether an operation makes known integers of none."""
    return full_name(operation).removeprefix("aten::") in _CONSTANTS


@functools.cache
def is_pointwise(operation: Any) -> bool:
    """Return whether an operation computes each element from the elements at the same place."""
    return torch.Tag.pointwise in getattr(operation, "tags", ())


def written_by(operation: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the operands that an operation writes to."""
    values = [args[i] if i < len(args) else kwargs.get(n) for i, n in _outputs_of(operation)]
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


@functools.cache
def _outputs_of(operation: Any) -> tuple[tuple[int, str], ...]:
    arguments = operation._schema.arguments if isinstance(operation, OpOverload) else ()
    return tuple(
        (number, argument.name)
        for number, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def factors_of(packet: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the factors of a product, biases left out; none where zeros save nothing."""
    name = full_name(packet).removeprefix("aten::")
    if name.startswith(("cdist", "euclidean_dist", "pdist", "linalg", "fft", "embedding_bag")):
        found = ()
    elif name.startswith("convolution_backward") and not args[-1][1]:
        found = (args[0], args[2])  # the gradient of the input alone
    elif any(kind in name for kind in ("convolution", "conv2d", "linear", "conv_tbc")):
        found = args[:2]
    elif name.startswith(("addmm", "baddbmm", "addmv", "addbmm", "sparse_addmm")):
        found = args[1:3]
    else:
        found = (*args, *(value for key, value in kwargs.items() if key != "out"))
    return [t for t in found if isinstance(t, Tensor)]


@functools.cache
def is_joining(operation: Any) -> bool:
    """Return whether an operation puts tensors beside each other."""
    return full_name(operation) in ("aten::cat", "aten::stack")


def has_formula(packet: Any) -> bool:
    """Return whether the MACs of an operation are known."""
    packet = _functional(packet)
    return packet in flop_counter.flop_registry or _formula(packet) is not None


@functools.cache
def _functional(packet: Any) -> Any:
    """Return the operation of which this may be the variant in place."""
    name = getattr(packet, "_qualified_op_name", "")
    if name.startswith("aten::") and name.endswith("_"):
        return getattr(aten, name.removeprefix("aten::").removesuffix("_"), packet)
    return packet


def macs_of(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return the MACs of an operation that has a formula."""
    packet = _functional(packet)
    formula = _formula(packet)
    if formula is not None:
        return int(formula(args, out))
    kwargs = {name: value for name, value in kwargs.items() if name != "out"}
    return int(flop_counter.flop_registry[packet](*args, **kwargs, out_val=out)) // 2


def _formula(packet: Any) -> Callable[[Any, Any], int] | None:
    return _FORMULAS.get(getattr(packet, "_qualified_op_name", ""))


def _numel(tensor: Any) -> int:
    return math.prod(tensor.shape)


def _trilinear(args: Any, _: Any) -> int:
    """MACs of a product of three tensors, the first of its two multiplications fused."""
    *tensors, expand1, expand2, expand3 = args[:6]
    shapes = []
    for tensor, expand in zip(tensors, (expand1, expand2, expand3), strict=True):
        shape = list(tensor.shape)
        for dim in sorted(expand):
            shape.insert(dim, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


def _elimination(matrix: Any) -> int:
    """MACs of a factorisation of square matrices into two triangular ones."""
    n = matrix.shape[-1]
    return _numel(matrix) // max(1, n * n) * (n * (n - 1) * (2 * n - 1) // 6)


def _embedding_bag(args: Any) -> int:
    scales = args[6] if len(args) > 6 else None
    return 0 if scales is None else _numel(args[1]) * args[0].shape[-1]


def _fourier(args: Any, out: Any) -> int:
    """MACs of fast transforms: n/2 log2(n) complex products of 4 MACs, of real ones half."""
    x, dims = args[0], args[1]
    larger = x if _numel(x) >= _numel(out) else out
    steps = sum(math.ceil(math.log2(max(1, larger.shape[dim]))) for dim in dims)
    complex_both = x.is_complex() and out.is_complex()
    return (2 if complex_both else 1) * _numel(larger) * steps


_FORMULAS: dict[str, Callable[[Any, Any], int]] = {
    "aten::mv": lambda args, out: _numel(args[0]),
    "aten::addmv": lambda args, out: _numel(args[1]),
    "aten::dot": lambda args, out: _numel(args[0]),
    "aten::vdot": lambda args, out: _numel(args[0]),
    "aten::addbmm": lambda args, out: _numel(args[1]) * args[2].shape[-1],
    "aten::_trilinear": _trilinear,
    "aten::_grouped_mm": lambda args, out: _numel(args[0]) * out.shape[-1],
    "aten::_int_mm": lambda args, out: _numel(args[0]) * out.shape[-1],
    "aten::_sparse_addmm": lambda args, out: _numel(args[1]) * args[2].shape[-1],
    "aten::_addmm_activation": lambda args, out: _numel(args[1]) * out.shape[-1],
    "aten::_scaled_dot_product_flash_attention_for_cpu": lambda args, out: (
        flop_counter.sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape) // 2
    ),
    # Distances between all pairs of vectors.
    "aten::_cdist_forward": lambda args, out: _numel(out) * args[0].shape[-1],
    "aten::_euclidean_dist": lambda args, out: _numel(out) * args[0].shape[-1],
    "aten::_pdist_forward": lambda args, out: _numel(out) * args[0].shape[-1],
    # Sums of rows, each times a number; without these numbers nothing is multiplied.
    "aten::_embedding_bag": lambda args, out: _embedding_bag(args),
    "aten::_embedding_bag_forward_only": lambda args, out: _embedding_bag(args),
    "aten::_weight_int8pack_mm": lambda args, out: _numel(args[0]) * out.shape[-1],
    "aten::linalg_cholesky_ex": lambda args, out: _elimination(args[0]) // 2,
    "aten::linalg_lu_factor_ex": lambda args, out: _elimination(args[0]),
    "aten::_linalg_det": lambda args, out: _elimination(args[0]),
    "aten::_linalg_slogdet": lambda args, out: _elimination(args[0]),
    "aten::_linalg_solve_ex": lambda args, out: (
        _elimination(args[0]) + _numel(args[1]) * (args[0].shape[-1] - 1)
    ),
    "aten::linalg_inv_ex": lambda args, out: (
        _elimination(args[0]) + _numel(args[0]) * (args[0].shape[-1] - 1)
    ),
    # Half of the matrix is zero.
    "aten::linalg_solve_triangular": lambda args, out: _numel(out) * args[0].shape[-1] // 2,
    "aten::conv_tbc": lambda args, out: _numel(out) * args[1].shape[0] * args[1].shape[1],
    "aten::_fft_c2c": _fourier,
    "aten::_fft_r2c": _fourier,
    "aten::_fft_c2r": _fourier,
    "torchvision::deform_conv2d": lambda args, out: (
        _numel(out) // args[1].shape[0] * _numel(args[1])
    ),
}
"""Products that `torch.utils.flop_counter` has no formula for, in MACs."""
