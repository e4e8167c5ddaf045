"""The measurement: contestants take turns, round by round, and the fastest round counts."""

import gc
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from isoflop.lab.bench.agree import TOLERANCE, TOLERANCE_BF16, relative_error
from isoflop.lab.bench.case import Case
from isoflop.lab.bench.contestant import CONTESTANTS, Contestant

_LONGEST = 300  # characters of a reason


def compete(
    case: Case,
    names: Sequence[str],
    *,
    repeats: int,
    peers_folder: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Let contestants do the work of a case in turns.

    Each is prepared, its results are compared with those of plain PyTorch, which warms it up, and
    then all do the work once in every round; each round begins with another one. One that fails, or
    computes wrong values, is out, with the reason.

    Args:
        case: What they do.
        names: Registered names of the contestants.
        repeats: Rounds that are timed, after one that is not.
        peers_folder: Where the peers are installed.
        tell: Called with lines on the progress.

    Returns:
        `rounds`: the seconds of each round by contestant; `errors`: relative errors of the results;
        `notes`; `skipped` (cannot take part) and `failed` (did not stand the test): reasons.
    """
    outcome: dict[str, Any] = {"rounds": {}, "errors": {}, "notes": {}, "skipped": {}, "failed": {}}
    running: dict[str, Contestant] = {}
    with ExitStack() as stack:

        def out(name: str, reason: str) -> None:
            outcome["failed"][name] = reason
            outcome["rounds"].pop(name, None)
            contestant = running.pop(name, None)
            if contestant is not None:
                contestant.close()
            tell(f"  {name} is out: {reason}")

        for name in names:
            contestant = CONTESTANTS.get(name)()
            reason = contestant.unsuited(case, peers_folder)
            if reason is not None:
                outcome["skipped"][name] = reason
                continue
            tell(f"  {name}: preparing")
            running[name] = contestant
            stack.callback(contestant.close)
            try:
                contestant.prepare(case, peers_folder)
                job = case.dense if contestant.on_dense else case.sparse
                error = relative_error(contestant.outputs(), job.reference)
            except Exception as exception:
                out(name, _reason(exception))
                continue
            outcome["errors"][name] = error
            tolerance = TOLERANCE_BF16 if contestant.bf16 else TOLERANCE
            if not error <= tolerance[case.kind]:
                out(name, f"computes wrong values: relative error {error:.1e}")
                continue
            if contestant.note is not None:
                outcome["notes"][name] = contestant.note
            outcome["rounds"][name] = []
        gc.collect()
        for index in range(repeats + 1):
            tell(f"  round {index} of {repeats}" if index else "  warm-up round")
            for name in _rotated(list(running), index):
                try:
                    seconds = running[name].run()
                except Exception as exception:
                    out(name, _reason(exception))
                    continue
                if index:
                    outcome["rounds"][name].append(seconds)
    return outcome


def summarize(rounds: dict[str, list[float]], dense: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a case.

    Args:
        rounds: Seconds of each round by contestant.
        dense: The contestants of which the fastest counts as `dense`.

    Returns:
        By contestant, and for `dense`: `seconds` (the fastest round), `median`, `spread` (of the
        quartiles, relative to the median) and `ratio_to_dense`; and `dense_is`, the fastest of the
        dense ones. Without any of those the ratios are missing.
    """
    rounds = dict(rounds)
    candidates = [name for name in dense if name in rounds]
    best = min(candidates, key=lambda name: min(rounds[name]), default=None)
    if best is not None:
        rounds = {"dense": rounds[best], **rounds}
    seconds = {name: min(times) for name, times in rounds.items()}
    figures: dict[str, Any] = {
        "seconds": seconds,
        "ratio_to_dense": {},
        "median": {name: statistics.median(times) for name, times in rounds.items()},
        "spread": {name: _spread(times) for name, times in rounds.items()},
        "dense_is": best,
    }
    if best is not None:
        figures["ratio_to_dense"] = {name: t / seconds["dense"] for name, t in seconds.items()}
    return figures


def _spread(times: list[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / statistics.median(times)


def _rotated(names: list[str], by: int) -> list[str]:
    start = by % len(names) if names else 0
    return names[start:] + names[:start]


def _reason(exception: Exception) -> str:
    text = " ".join(str(exception).split())
    if not isinstance(exception, ValueError) or not text:
        text = f"{type(exception).__name__}: {text}".rstrip(": ")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
