"""`isoflop bench`: the same work at several sparsities."""

import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.kernels import retain_freed_memory
from isoflop.lab.bench import in_process as _in_process  # noqa: F401  (registers the contestants)
from isoflop.lab.bench import peers as _peers  # noqa: F401
from isoflop.lab.bench.case import Case
from isoflop.lab.bench.contestant import CONTESTANTS, Contestant
from isoflop.lab.bench.machine import describe_machine
from isoflop.lab.bench.rounds import compete, summarize
from isoflop.registry import did_you_mean, find_name, names_in

PEERS_FOLDER = Path("benchmarks/.peers")
"""Where `benchmarks/setup_peers.sh` puts the peers, seen from the root of the repository."""


def run_bench(
    build: Callable[..., Case],
    sparsities: Sequence[float],
    *,
    threads: int | None = None,
    repeats: int = 5,
    peers: Sequence[str] = ("all",),
    skip: Sequence[str] = (),
    bf16: bool = False,
    peers_folder: Path = PEERS_FOLDER,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    done: Callable[[list[dict[str, Any]]], None] = lambda results: None,
) -> list[dict[str, Any]]:
    """Time all contestants at each sparsity.

    Args:
        build: Builds the case from `sparsity`, `threads` and `folder`, by keyword.
        sparsities: The sparsities, each in [0, 1); 0 is the original model.
        threads: Threads of every contestant; by default as many as PyTorch has.
        repeats: Rounds that are timed.
        peers: Peers that take part: names, `all` or `none`.
        skip: Contestants that do not.
        bf16: Whether the contestants that multiply in bfloat16 take part. Ratios stay those to the
            dense model in float32.
        peers_folder: Where the peers are installed.
        tell: Called with lines on the progress.
        done: Called with all results so far after each sparsity.

    Returns:
        Plain data, for each sparsity: `workload`, `machine`, `seconds`, `ratio_to_dense`, `median`,
        `spread`, `dense_is` (see `summarize`), `rounds`, `errors`, `notes`, `skipped` and `failed`
        (see `compete`).

    Raises:
        IsoflopError: An option is invalid.
    """
    names = _contestants(peers, skip, bf16)
    for name, value in (("--threads", threads), ("--repeats", repeats)):
        if value is not None and value < 1:
            raise IsoflopError(f"{name} must be at least 1, not {value}.")
    if not sparsities:
        raise IsoflopError("Give at least one --sparsity.")
    for sparsity in sparsities:
        if not 0.0 <= sparsity < 1.0:
            raise IsoflopError(f"--sparsity must lie in [0, 1), not {sparsity}.")
    # For all contestants of this process alike.
    retain_freed_memory()
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    results: list[dict[str, Any]] = []
    try:
        torch.set_num_threads(threads)
        machine = describe_machine()
        if machine["busy"]:
            tell(
                f"The machine is busy (load average {machine['load_average']:.1f}): the figures "
                "will be those of a part of it. Wait until the rest is idle."
            )
        for sparsity in sparsities:
            tell(f"sparsity {sparsity:g}")
            with tempfile.TemporaryDirectory(prefix="isoflop-bench-") as folder:
                case = build(sparsity=sparsity, threads=threads, folder=Path(folder))
                outcome = compete(
                    case, names, repeats=repeats, peers_folder=peers_folder, tell=tell
                )
            dense = [name for name in names if _is_reference(CONTESTANTS.get(name))]
            results.append(
                {
                    "workload": {**case.workload, "threads": threads, "repeats": repeats},
                    "machine": machine,
                    **summarize(outcome["rounds"], dense),
                    **outcome,
                }
            )
            done(results)
            del case
            gc.collect()
    finally:
        torch.set_num_threads(before)
    return results


def _is_reference(kind: type[Contestant]) -> bool:
    """Return whether others are compared with it."""
    return kind.on_dense and not kind.bf16


def _peer(name: str, known: Sequence[str]) -> str:
    found = find_name(name, known)
    if found is None:
        hint = did_you_mean(name, known)
        raise UnknownNameError(f"Unknown peer {name!r}.{hint} Known: {', '.join(known)}.")
    return found


def _contestants(peers: Sequence[str], skip: Sequence[str], bf16: bool) -> list[str]:
    """Return the names of the contestants, in the order of registration."""
    known = [name for name, kind in CONTESTANTS.items() if kind.peer]
    peers = [_peer(name, [*known, "all", "none"]) for name in names_in(peers, "peers")]
    skip = [CONTESTANTS.name_of(CONTESTANTS.get(name)) for name in names_in(skip, "skip")]
    wanted = set(known) if "all" in peers else set(peers)
    names = [
        name
        for name, kind in CONTESTANTS.items()
        if (not kind.peer or name in wanted) and name not in skip and (bf16 or not kind.bf16)
    ]
    if not names:
        raise IsoflopError("All contestants are left out; --skip fewer.")
    return names
