"""From dense layers with masks to layers that store non-zeros only, and back."""

import functools
import importlib

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from isoflop.errors import KernelError
from isoflop.flops.copies import copy_with_tensors
from isoflop.kernels.cpu.conv2d import SparseConv2d
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.kernels.cpu.linear import SparseLinear
from isoflop.masks import masked_by, set_mask
from isoflop.surgery import STORES, become, check_module, is_fan_in_fan_out


def has_sparse_form(layer: nn.Module) -> bool:
    """Tell whether `compress` knows the kind of `layer`.

    Subclasses are left out, as what they do with their weight is not known; but for the last layer of
    `nn.MultiheadAttention`, which does nothing of its own.
    """
    kinds = (nn.Linear, NonDynamicallyQuantizableLinear, nn.Conv2d)
    return type(layer) in kinds or is_fan_in_fan_out(layer)


def own_names(layer: nn.Module) -> list[str]:
    """Return the names of what has been added to a layer and would be lost in its sparse form.

    Those are tensors and children besides its weight, bias and masks, and attributes that sparse
    layers have by the same names.
    """
    known = {"weight", "bias"}
    held = [name for store in STORES for name in vars(layer)[store] if name not in known]
    added = [name for name in held if masked_by(layer, name) is None]
    return [*added, *(name for name in vars(layer) if name in _sparse_names())]


@functools.cache
def _sparse_names() -> set[str]:
    """Return the names of all that sparse layers have and others need not have."""
    sample = SparseLinear(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    return set(dir(sample)) - set(dir(nn.Module())) - {"weight", "bias", *nn.Linear.__annotations__}


def compress(layer: nn.Module, mask: Tensor, *, rows: int = 1) -> SparseLayer:
    """Return the layer that stores the weights of `layer` on `mask`, which is left as it is.

    Args:
        layer: An `nn.Linear`, an `nn.Conv2d` or Hugging Face's Conv1D.
        mask: Boolean, shaped like the weight.
        rows: 4 if the non-zeros come in blocks of four consecutive outputs, else 1.

    Raises:
        KernelError: The layer is of another kind, or its padding is not by zeros.
    """
    if not has_sparse_form(layer):
        raise KernelError(
            f"{type(layer).__name__} has no compressed form; nn.Linear, nn.Conv2d and Hugging Face's "
            "Conv1D have one."
        )
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d.from_dense(layer, mask, rows=rows)
    return SparseLinear.from_dense(layer, mask, rows=rows)


def densify(model: nn.Module) -> nn.Module:
    """Return a copy of `model` whose compressed layers are dense layers with masks.

    The copy computes the same, and is what `isoflop.profile`, `isoflop.spectral` and masked storage
    work on; see `densify_`, which changes the model itself.
    """
    check_module(model)
    return densify_(copy_with_tensors(model, lambda *args: args[-1].detach().clone()))


def densify_(model: nn.Module) -> nn.Module:
    """Make the compressed layers of `model` dense layers with masks, in place.

    Optimizers that train the compressed layers do not follow. See `densify`.

    Returns:
        The model.
    """
    check_module(model)
    for layer in list(model.modules()):
        if isinstance(layer, SparseLayer):
            dense = _conv1d(layer.to_dense()) if layer.fan_in_fan_out else layer.to_dense()
            set_mask(dense, "weight", layer.mask())
            layer.forget()
            become(layer, dense)
    return model


def _conv1d(linear: nn.Module) -> nn.Module:
    """Return the layer of GPT-2, whose weight is (in, out), that computes what `linear` does."""
    # Where there was such a layer, there is transformers.
    kind = importlib.import_module("transformers.pytorch_utils").Conv1D
    weight = linear.get_parameter("weight")
    with torch.device("meta"):  # without drawing random numbers
        layer = kind(*weight.shape)
    layer.weight = nn.Parameter(weight.detach().t().contiguous(), weight.requires_grad)
    layer.bias = linear.bias
    return layer.train(linear.training)


@torch.no_grad()
def align_masks(averaged: nn.Module, model: nn.Module) -> None:
    """Give the compressed layers of an average of models the non-zeros of the present `model`.

    The values of a compressed layer have no fixed places: once the masks have changed, the values of
    an average (EMA, SWA) and those of the model belong to different weights. Call this right before
    the average is updated (PyTorch's `AveragedModel` does so by itself). Averages of weights that are
    still there stay, those of weights that are gone are forgotten, new ones start from zero.

    Args:
        averaged: The averaged model, such as an `AveragedModel` or its `module`.
        model: The model in training.

    Raises:
        KernelError: The two do not have the same compressed layers.
    """
    for given in (averaged, model):
        check_module(given)
    pairs = list(zip(_sparse_layers(averaged), _sparse_layers(model), strict=False))
    same = len(_sparse_layers(averaged)) == len(_sparse_layers(model))
    if not pairs or not same or any(a.dense_shape != b.dense_shape for a, b in pairs):
        raise KernelError(
            "The average and the model do not have the same compressed layers. Pass a copy of the "
            "model that was made after `isoflop.sparsify`, and the model."
        )
    for mine, theirs in pairs:
        if not mine.index.equal(theirs.index):
            mine.drop_and_grow(theirs.mask())


def _sparse_layers(model: nn.Module) -> list[SparseLayer]:
    return [module for module in model.modules() if isinstance(module, SparseLayer)]
