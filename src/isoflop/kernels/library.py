"""The compiled kernels: whether they are there, and for which instruction set."""


def available() -> bool:
    """Return whether compiled kernels are there; without them, layers run on PyTorch's own."""
    return False


def isa() -> str:
    """Return the name of the instruction set that the compiled kernels use here."""
    return "none"
