"""Multi-head attention whose projections are layers of their own.

`nn.MultiheadAttention` keeps its projections as bare parameters and multiplies by them in one
function, so that no layer can take their place. Here each projection is an `nn.Linear` that is
called, and that a transform can replace like any other.
"""

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from isoflop.flops.copies import copy_with_tensors, keep_marks
from isoflop.flops.trace import Trace
from isoflop.surgery import replace_modules
from isoflop.transforms.replacement import ReplacedLayer
from isoflop.transforms.usage import owner_counts, weight_users

# Other subclasses of Linear may compute something else.
_PROJECTIONS = (nn.Linear, NonDynamicallyQuantizableLinear)


class SeparateAttention(nn.Module):
    """An `nn.MultiheadAttention` taken apart: same function, same arguments, same FLOPs.

    Queries, keys and values have a projection each, `q_proj`, `k_proj` and `v_proj`, whether or
    not the attention that this stems from had them in one matrix: then one module serves self- and
    cross-attention alike.

    Args:
        attention: The attention whose weights the projections share. It keeps them.

    Attributes:
        in_proj_weight: None, and so is `in_proj_bias`: there is no joint matrix.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = attention.embed_dim
        self.kdim = attention.kdim
        self.vdim = attention.vdim
        self.num_heads = attention.num_heads
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        self.add_zero_attn = attention.add_zero_attn
        self.in_proj_weight = None
        self.in_proj_bias = None
        self._qkv_same_embed_dim = False
        weights = _input_weights(attention)
        bias = attention._parameters["in_proj_bias"]
        biases = _thirds(bias) if bias is not None else [None] * 3
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        out = attention.out_proj
        self.out_proj = _linear(out.get_parameter("weight"), out._parameters["bias"])
        self.bias_k = attention.bias_k
        self.bias_v = attention.bias_v
        self.train(attention.training)

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.embed_dim // self.num_heads

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, with the arguments of `nn.MultiheadAttention`.

        Args:
            query: Queries `(N, L, E)`; `(L, N, E)` unless `batch_first`; `(L, E)` unbatched.
            key: Keys of length S, likewise, with `kdim` channels.
            value: Values of length S, likewise, with `vdim` channels.
            key_padding_mask: Keys to ignore (bool) or scores to add, `(N, S)`, or `(S)` unbatched.
            need_weights: Whether to return the attention weights too.
            attn_mask: Pairs to ignore (bool) or scores to add, `(L, S)` or `(N * heads, L, S)`.
            average_attn_weights: Whether to average the returned weights over the heads.
            is_causal: Whether `attn_mask`, which must be given, is the causal mask.

        Returns:
            The output, shaped like `query`, and the weights `(N, L, S)`, or `(N, heads, L, S)`
            if not averaged, or None.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "is_causal says that attn_mask is causal, but there is no attn_mask."
            )
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        self._check(query, key, value)

        # As in PyTorch: the hint spares the mask only where nothing else needs it.
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(None if causal else attn_mask, key_padding_mask, query)
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        sequence_first = batched and not self.batch_first
        if sequence_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
        q, k, v = (self._heads(x) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))

        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropout) if dropout > 0.0 else weights
            output = weights @ v
        else:
            output = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        output = self.out_proj(output.transpose(1, 2).flatten(2))

        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return output.squeeze(0), weights
        return output.transpose(0, 1) if sequence_first else output, weights

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        sizes = (("query", query, self.embed_dim), ("key", key, self.kdim))
        for name, tensor, size in (*sizes, ("value", value, self.vdim)):
            if tensor.shape[-1] != size:
                raise ValueError(f"{name} must have {size} channels, not {tensor.shape[-1]}.")

    def _heads(self, x: Tensor) -> Tensor:
        """Map `(N, L, E)` to `(N, heads, L, E / heads)`."""
        n, length, width = x.shape
        return x.view(n, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
    ) -> Tensor | None:
        """Return what to add to the scores `(N, heads, L, S)`, or None."""
        masks = []
        if attn_mask is not None:
            mask = _additive(attn_mask, query.dtype)
            three = mask.dim() == 3
            masks.append(mask.unflatten(0, (-1, self.num_heads)) if three else mask[None, None])
        if key_padding_mask is not None:
            masks.append(_additive(key_padding_mask, query.dtype)[:, None, None])
        # The learned and the zero key come last, and nothing masks them.
        more = (self.bias_k is not None) + self.add_zero_attn
        masks = [F.pad(mask, (0, more)) if more else mask for mask in masks]
        return sum(masks[1:], masks[0]) if masks else None


def separate_attention(model: nn.Module, trace: Trace, keep: Collection[str]) -> nn.Module:
    """Return `model` with its multi-head attention taken apart, so that projections are layers.

    A subclass of `nn.MultiheadAttention` may compute something else, and weights that are frozen or
    tied, or that other modules use too, must stay where they are: such attention is left as it is.

    Args:
        model: The dense model; it is not changed, and the result shares its tensors.
        trace: What one forward pass of it showed.
        keep: Paths of modules to leave as they are.

    Returns:
        A copy, or `model` itself if there is nothing to take apart.
    """
    users, owners = weight_users(trace), owner_counts(model)
    paths = [
        path
        for path, module in model.named_modules()
        if type(module) is nn.MultiheadAttention
        and path not in keep
        and any(p.requires_grad for p in module.parameters())
        and type(module.out_proj) in _PROJECTIONS
        and (f"{path}.out_proj.weight" if path else "out_proj.weight") in users
        and all(
            owners[id(p)] == 1 and users.get(f"{path}.{name}" if path else name, {path}) == {path}
            for name, p in module.named_parameters()
        )
    ]
    if not paths:
        return model
    model = copy_with_tensors(model, lambda *args: args[-1])
    new: dict[nn.Module, nn.Module] = {}
    for path in paths:
        attention = model.get_submodule(path)
        assert isinstance(attention, nn.MultiheadAttention)
        new[attention] = SeparateAttention(attention)
    model = replace_modules(model, new)
    forbid_fast_path(model)
    return model


def forbid_fast_path(
    model: nn.Module, replaced: tuple[type[nn.Module], ...] = (SeparateAttention, ReplacedLayer)
) -> None:
    """Keep PyTorch's transformer encoders from bypassing modules that took a layer's place.

    In evaluation, an `nn.TransformerEncoderLayer` reads the weights of its layers and runs them as
    one fused operation. Both attributes were set when the encoder was built, for that alone.

    Args:
        model: The model, changed in place where it contains such modules.
        replaced: The classes of these modules.
    """
    for module in model.modules():
        ours = any(isinstance(m, replaced) for m in module.modules())
        if ours and isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif ours and isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _input_weights(attention: nn.MultiheadAttention) -> list[nn.Parameter]:
    """Return the weights of queries, keys and values, `(E, E)`, `(E, kdim)` and `(E, vdim)`."""
    joint = attention._parameters["in_proj_weight"]
    if joint is not None:
        return _thirds(joint)
    return [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]


def _thirds(joint: nn.Parameter) -> list[nn.Parameter]:
    """Return the three parts of a joint parameter, which share its memory."""
    thirds = [nn.Parameter(x, requires_grad=joint.requires_grad) for x in joint.detach().chunk(3)]
    for third in thirds:
        keep_marks(joint, third)
    return thirds


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """Return a Linear with these parameters."""
    # On the meta device: no memory, and no draw that would change the global random state.
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask of what to ignore into scores to add."""
    if mask.is_floating_point():
        return mask
    if mask.dtype is not torch.bool:
        raise ValueError(f"Masks must be bool or floating point, not {mask.dtype}.")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
