"""Memory that is given back to the system and asked for again costs more than it saves."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def retain_freed_memory() -> bool:
    """Let this process keep the memory that it has freed, for its next tensors.

    By default the C library gives the memory of every large tensor back to the system, which clears
    and maps new pages for the next; the wide activations of Sparse Wide models pay more for that
    than those of the dense model. Call it before the first tensors are made.

    Returns:
        Whether the C library can do so; only glibc can.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    options = ((_M_TRIM_THRESHOLD, 2**31 - 1), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1))
    done = [bool(mallopt(option, value)) for option, value in options]
    return all(done)
