"""Models for other engines: weights dense with zeros in place, BatchNorm folded."""

import inspect
import io
import keyword
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from isoflop.errors import IsoflopError
from isoflop.files import new_file, write_bytes
from isoflop.flops.fakes import plain_output
from isoflop.kernels.autotune.inputs import real_inputs, undisturbed
from isoflop.kernels.fuse.freeze import frozen_dense
from isoflop.optional import require
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
    try:
        with warnings.catch_warnings(), undisturbed(program):
            warnings.simplefilter("ignore")  # the exporters warn of themselves
            program = _exportable(program, args, kwargs)
            given = inspect.signature(program.forward).bind(*args, **kwargs).arguments
            data = write(program, args, kwargs, tree_map(_varying_batch, dict(given)))
    except IsoflopError:
        raise
    except Exception as error:  # the exporters raise many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise IsoflopError(
            f"{type(model).__name__} cannot be exported as {format}: {lines[0]}"
        ) from error
    write_bytes(path, data)


def _exportable(program: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """Return `program`, or what calls it where exporters cannot take it as it is."""
    with torch.no_grad():
        output = program(*args, **kwargs)
    signature = inspect.signature(program.forward)
    given = signature.bind(*args, **kwargs).arguments
    # Exporters hand the arguments of a graph over by their position.
    in_order = list(given) == list(signature.parameters)[: len(given)]
    if in_order and _plain(output) is output:
        return program
    taken = [p for name, p in signature.parameters.items() if name in given]
    return _Plain(program, signature.replace(parameters=taken)).eval()


class _Plain(nn.Module):
    """Takes the given arguments alone, and returns plain tensors in place of an object of a library.

    Args:
        model: The model.
        signature: Of its forward pass, without what is not given.
    """

    def __init__(self, model: nn.Module, signature: inspect.Signature) -> None:
        super().__init__()
        self.model = model

        def forward(*args: Any, **kwargs: Any) -> Any:
            return _plain(model(*args, **kwargs))

        forward.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
        self.forward = forward


def _plain(output: Any) -> Any:
    """Return an output as what programs can return: named tuples of anybody's are not."""
    output = plain_output(output)
    return tuple(output) if isinstance(output, tuple) and hasattr(output, "_fields") else output


@FORMATS.register("pt2")
def _pt2(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: dict[str, Any]
) -> bytes:
    """A program of `torch.export`."""
    exported = torch.export.export(model, args, kwargs, dynamic_shapes=batch)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    buffer.seek(0)
    try:
        torch.export.load(buffer).module()
    except Exception as error:
        raise RuntimeError(
            f"PyTorch writes a program that it cannot read back{_unreadable(model)}. Let the forward "
            "pass return tensors in tuples, lists and dicts, without texts, and give modules names that "
            "are no words of Python."
        ) from error
    return buffer.getvalue()


def _unreadable(model: nn.Module) -> str:
    """Return which module has a name that the code of a program cannot contain, if one has."""
    for path, _ in model.named_modules():
        if keyword.iskeyword(path.rpartition(".")[2]):
            return f", as the module {path!r} has a word of Python for its name"
    return ""


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


def _varying_batch(value: Any) -> dict[int, Any] | None:
    """Return which sizes of a tensor may be others; None of what is no tensor."""
    if not isinstance(value, Tensor):
        return None
    return {0: torch.export.Dim.AUTO} if value.ndim else {}
