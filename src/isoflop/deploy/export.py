"""Models for other engines: weights dense with zeros in place, BatchNorm folded."""

import inspect
import io
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from isoflop.errors import IsoflopError
from isoflop.fakes import plain_output
from isoflop.files import new_file, write_bytes
from isoflop.kernels.freeze import frozen_dense
from isoflop.kernels.inputs import real_inputs
from isoflop.models.extras import require
from isoflop.registry import Registry
from isoflop.surgery import ExampleInputs

FORMATS: Registry[Callable[..., bytes]] = Registry("format")

_LARGEST_ONNX = 2**31 - 1


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str,
    example_inputs: ExampleInputs,
) -> None:
    """Write a model as a program that other engines run.

    The program computes what `model.eval()` does. Its layers are dense, with the zeros in place, and
    have BatchNorm folded in. The first dimension of every input, the batch, may vary as far as the
    model lets it; give a batch of two or more, as PyTorch takes a size of one for a constant.

    Args:
        model: The model; it is not changed.
        path: The file.
        format: ``"onnx"``, or ``"pt2"`` for a program of `torch.export`.
        example_inputs: What the model takes; see `isoflop.profile`.

    Raises:
        UnknownNameError: There is no such format.
        IsoflopError: The folder is missing, the model cannot be exported, or ONNX is not installed.
        InputError: They are no example inputs.
    """
    write = FORMATS.get(format)
    path = new_file(path)
    if format == "onnx":
        require("onnxscript", "export")
    program = frozen_dense(model, example_inputs=example_inputs)
    args, kwargs = real_inputs(model, example_inputs)
    with torch.no_grad():
        output = program(*args, **kwargs)
    if plain_output(output) is not output:
        program = _Plain(program).eval()
    given = inspect.signature(program.forward).bind(*args, **kwargs).arguments
    batch = tree_map_only(Tensor, _varying_batch, dict(given))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn of themselves
            data = write(program, args, kwargs, batch)
    except IsoflopError:
        raise
    except Exception as error:  # the exporters raise many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise IsoflopError(
            f"{type(model).__name__} cannot be exported as {format}: {lines[0]}"
        ) from error
    write_bytes(path, data)


class _Plain(nn.Module):
    """Returns plain tensors where the model returns an object of its library."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return plain_output(self.model(*args, **kwargs))


@FORMATS.register("pt2")
def _pt2(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: dict[str, Any]
) -> bytes:
    """A program of `torch.export`."""
    exported = torch.export.export(model, args, kwargs, dynamic_shapes=batch)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


@FORMATS.register("onnx")
def _onnx(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: dict[str, Any]
) -> bytes:
    """A model in ONNX."""
    program = torch.onnx.export(
        model, args, kwargs=kwargs, dynamic_shapes=batch, dynamo=True, verbose=False
    )
    assert program is not None
    proto = program.model_proto
    if proto.ByteSize() > _LARGEST_ONNX:
        raise IsoflopError("The model is larger than the 2 GiB of one ONNX file. Use pt2.")
    return proto.SerializeToString()


def _varying_batch(tensor: Tensor) -> dict[int, Any]:
    return {0: torch.export.Dim.AUTO} if tensor.ndim else {}
