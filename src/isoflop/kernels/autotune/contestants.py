"""What each layer of a model can be: itself, or what could take its place."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.kernels.autotune.candidates import sparse_candidates, sparse_layer, why_dense
from isoflop.kernels.autotune.inputs import Inputs
from isoflop.kernels.cpu.functional import ACTIVATIONS
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.kernels.cpu.variants import Variant
from isoflop.kernels.semi_structured import (
    Packing,
    SemiStructuredLinear,
    disable,
    enable,
    why_not,
)
from isoflop.masks import get_mask, named_masks, remove_mask
from isoflop.surgery import recast

Mode = Literal["inference", "training"]


Contestants = dict[str, dict[str, nn.Module]]
"""What each layer can be, by path and by what it computes with."""


_MANY_ZEROS = 0.25
"""Part of a weight that is zero in sparse layers only: no initialisation draws so many zeros."""


_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu_,
    "silu": functools.partial(F.silu, inplace=True),
}


class WithEpilogue(nn.Module):
    """A dense layer in the place of a sparse one that has an epilogue.

    Args:
        layer: The layer.
        activation: A name in `isoflop.kernels.ACTIVATIONS`.
    """

    def __init__(self, layer: nn.Module, activation: str) -> None:
        super().__init__()
        self.layer = layer
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the layer, add the residual, apply the activation."""
        y = self.layer(input)
        if residual is not None:
            y += residual
        return _IN_PLACE.get(self.activation, ACTIVATIONS[self.activation])(y)


def find_contestants(
    model: nn.Module, inputs: Inputs, mode: Mode, variants: Sequence[Variant]
) -> tuple[Contestants, dict[str, str]]:
    """Return what each layer can be, by path: itself, or what could take its place.

    Args:
        model: The model; for inference, its masks are removed.
        inputs: What it takes.
        mode: What is measured.
        variants: What sparse layers may run on.

    Returns:
        The contestants, and why other layers with zeros cannot run on the kernels, by path.
    """
    found: Contestants = {}
    skipped: dict[str, str] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, SparseLayer) and mode == "training":
            # Views of the layer, for measuring only.
            dense, sparse = recast(layer, type(layer)), recast(layer, type(layer))
            dense.backend, sparse.backend = "dense", "sparse"
            found[path] = {"dense": dense, "sparse": sparse}
        elif isinstance(layer, SparseLayer):
            dense = WithEpilogue(layer.to_dense().requires_grad_(False), layer.activation)
            found[path] = {"dense": dense, "sparse": layer}
        if isinstance(layer, SparseLayer) and layer.values.dtype is not torch.float32:
            skipped[path] = _wrong_type(layer.values)
    if mode == "inference":
        candidates = sparse_candidates(model, inputs)
        skipped |= candidates.skipped
        for path, layer in candidates.layers.items():
            weight, mask = layer.get_parameter("weight"), get_mask(layer)
            assert mask is not None
            if weight.dtype is torch.float32:
                sparse = sparse_layer(layer, mask).requires_grad_(False)
                remove_mask(layer)
                found[path] = {"dense": layer, "sparse": sparse}
            else:
                skipped[path] = _wrong_type(weight)
        skipped = _layers_with_zeros(model, found) | skipped
    else:
        for name, module, parameter, _ in named_masks(model):
            reason = why_dense(module, parameter) or (
                "is masked, and only compressed layers train on the kernels: see "
                "isoflop.sparsify(storage='compressed')"
            )
            skipped[name.rpartition(".")[0] if parameter == "weight" else name] = reason
    if found and mode == "inference":
        # Dense convolutions between sparse ones: their own layout costs two conversions.
        for path, layer in model.named_modules():
            if type(layer) is not nn.Conv2d or why_dense(layer) is not None:
                continue
            weight = layer.get_parameter("weight")
            if weight.dtype is torch.float32 and path not in found:
                sparse = sparse_layer(layer, torch.ones_like(weight, dtype=torch.bool))
                found[path] = {"dense": layer, "sparse": sparse.requires_grad_(False)}
    for modules in found.values():
        sparse = modules["sparse"]
        assert isinstance(sparse, SparseLayer)
        for variant in variants:
            if variant.name not in modules and variant.takes(sparse.index):
                # A view of the layer.
                other = recast(sparse, type(sparse))
                other.backend = variant.name
                modules[variant.name] = other
    return found, skipped


def find_semi_structured(
    model: nn.Module, inputs: Inputs, mode: Mode, kind: Packing
) -> tuple[Contestants, dict[str, str]]:
    """Return what each masked layer can be on a GPU, by path, and why others stay dense."""
    found: Contestants = {}
    for module in model.modules():
        disable(module)
    candidates = sparse_candidates(model, inputs)
    skipped = candidates.skipped
    for path, layer in candidates.layers.items():
        reason = why_not(layer, kind, training=mode == "training")
        if reason is not None:
            skipped[path] = reason
        elif mode == "training":
            # Views of the layer, for measuring only.
            dense, sparse = recast(layer, type(layer)), recast(layer, type(layer))
            enable(sparse, kind)
            found[path] = {"dense": dense, "sparse": sparse}
        else:
            remove_mask(layer)
            found[path] = {"dense": layer, "sparse": SemiStructuredLinear.from_dense(layer, kind)}
    return found, skipped


def _wrong_type(weight: Tensor) -> str:
    return f"has weights of {weight.dtype}, and the kernels compute in torch.float32: use `model.float()`"


def _layers_with_zeros(model: nn.Module, found: Contestants) -> dict[str, str]:
    """Return why layers stay dense of which many weights are zero, though nothing masks them."""
    skipped: dict[str, str] = {}
    masked = {name for name, *_ in named_masks(model)}
    for path, module in model.named_modules():
        if path in found or isinstance(module, SparseLayer):
            continue
        for parameter, weight in module._parameters.items():
            name = f"{path}.{parameter}" if path else parameter
            if weight is None or weight.ndim < 2 or name in masked or not weight.numel():
                continue
            if float((weight == 0).float().mean()) >= _MANY_ZEROS:
                skipped[path if parameter == "weight" else name] = why_dense(module, parameter) or (
                    "has many zeros and no mask: isoflop.freeze has left it dense, or "
                    "isoflop.sparsify has not masked it"
                )
    return skipped
