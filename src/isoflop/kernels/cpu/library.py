"""Finding and loading the compiled kernels, or saying why there are none.

Set ``ISOFLOP_NO_KERNELS=1`` to go without them, ``ISOFLOP_ISA`` to choose an instruction set. Both
are read once, on import.
"""

import ctypes
import functools
import hashlib
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from isoflop.errors import KernelError

WITHOUT = "ISOFLOP_NO_KERNELS"
ISA = "ISOFLOP_ISA"


def available() -> bool:
    """Return whether the compiled kernels are in use; without them all works, but slowly."""
    return _native is not None


def runs(x: Tensor, *others: Tensor | None) -> bool:
    """Return whether the compiled kernels can work on tensors: float32 on the CPU.

    Tensors without values need no kernels. Those that `torch.func` or forward-mode AD follows do not
    reach them.
    """
    tensors = [tensor for tensor in (x, *others) if tensor is not None]
    return (
        (available() or x.is_meta or isinstance(x, FakeTensor))
        and all(t.dtype is torch.float32 and (t.is_cpu or t.is_meta) for t in tensors)
        and not is_transformed(*tensors)
    )


def is_transformed(*tensors: Tensor) -> bool:
    """Return whether `torch.func` (`vmap`, `grad`, `jvp` …) or forward-mode AD is at work.

    They see through PyTorch's own operations only. Forward-mode AD follows some tensors alone.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or any(map(_is_dual, tensors))


def is_wrapped(tensor: Tensor) -> bool:
    """Return whether a tensor itself is followed by `torch.func` or by forward-mode AD."""
    wrapped: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped.is_functorch_wrapped_tensor(tensor) or _is_dual(tensor)


def _is_dual(tensor: Tensor) -> bool:
    forward = torch.autograd.forward_ad
    return forward._current_level >= 0 and forward.unpack_dual(tensor).tangent is not None


def why_unavailable() -> str | None:
    """Return why the compiled kernels are not in use, or None if they are."""
    return _reason


def native() -> ModuleType:
    """Return the compiled module.

    Raises:
        KernelError: There is none.
    """
    if _native is None:
        raise KernelError(
            f"The sparse kernels are not available: {_reason}. Install isoflop on a machine with a "
            f"C++ compiler, without {WITHOUT}."
        )
    return _native


def isas() -> list[str]:
    """Return the instruction sets that were compiled and run here, fastest first."""
    return [] if _native is None else _native.isas()


def isa() -> str | None:
    """Return the instruction set in use, or None without compiled kernels."""
    return None if _native is None else _native.isa()


def set_isa(name: str) -> None:
    """Use the kernels of another instruction set, in the whole process.

    Args:
        name: One of `isas`.

    Raises:
        KernelError: This machine does not have it.
    """
    try:
        native().set_isa(name)
    except ValueError as error:
        raise KernelError(f"{error}.") from error


@functools.cache
def fingerprint() -> str | None:
    """Return what tells these compiled kernels from others, or None without compiled kernels."""
    if _native is None or _native.__file__ is None:
        return None
    return hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()


def has_bfloat16() -> bool:
    """Return whether the kernels in use have products of bfloat16."""
    return _native is not None and _native.has_bfloat16()


def _load() -> tuple[ModuleType | None, str | None]:
    if os.environ.get(WITHOUT, "0") not in ("", "0"):
        return None, f"{WITHOUT} is set"
    try:
        _share_openmp()
        return importlib.import_module("isoflop.kernels._native"), None
    except ModuleNotFoundError:
        return None, "they were not compiled when isoflop was installed"
    except (ImportError, OSError) as error:
        return None, f"they cannot be loaded: {error}"


def _share_openmp() -> None:
    """Make the OpenMP runtime that PyTorch has loaded serve the kernels too.

    Their pools of threads would otherwise wait for each other's cores. PyTorch's wheels carry a
    runtime, often under a name of its own; other builds use that of the system.
    """
    root = Path(torch.__file__).parent
    bundled = [*root.glob("lib/libgomp*.so*"), *root.parent.glob("torch.libs/libgomp*.so*")]
    names = [str(path) for path in sorted(bundled)] or ["libgomp.so.1"]
    for name in names:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


_native, _reason = _load()
if _native is not None and (_wanted := os.environ.get(ISA)):
    set_isa(_wanted)
