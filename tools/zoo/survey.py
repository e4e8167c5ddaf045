"""The survey: a sample of models, each checked, and what became of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.errors import IsoflopError
from isoflop.transforms import TRANSFORMS, Transform
from tools.zoo import results
from tools.zoo.candidates import Sample
from tools.zoo.pool import check_all
from tools.zoo.report import progress_line


def survey(
    config: Transform,
    sample: Sample,
    *,
    jobs: int = 1,
    timeout: float = 300.0,
    out: Path | None = None,
    fresh: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check every model of a sample.

    Args:
        config: The transform. The tiny text models get it with `dense_ends=False`: with two layers,
            the projection onto the vocabulary is most of their cost, and no sparsity of the rest
            could pay for its growth.
        sample: The models.
        jobs: How many to check at a time.
        timeout: Seconds that a model may take.
        out: File of the results; those that it holds already, of the same versions and options,
            are not made again.
        fresh: Make them again all the same.
        tell: Called with a line after every model.

    Returns:
        Plain data: `versions`, `settings`, `sample` and `results`, one for every model, in the
        order of the sample.

    Raises:
        IsoflopError: An option is invalid.
    """
    if jobs < 1:
        raise IsoflopError(f"--jobs must be at least 1, not {jobs}.")
    if timeout <= 0:
        raise IsoflopError(f"--timeout must be positive, not {timeout}.")
    text_config = dataclasses.replace(config, dense_ends=False)
    outcome: dict[str, Any] = {
        "format_version": results.FORMAT_VERSION,
        "versions": results.versions(),
        "settings": {"transform": TRANSFORMS.name_of(config), "config": config.to_dict()},
        "sample": {},
        "results": [],
    }
    known = {} if fresh else results.load(out, outcome["versions"], outcome["settings"])
    done: dict[str, dict[str, Any]] = {}

    def record(result: dict[str, Any], note: str = "") -> None:
        done[result["spec"]] = result
        if result["status"] == "not built":
            sample.replace(result["spec"])
        built = sum(r["status"] != "not built" for r in done.values())
        tell(progress_line(result, built, sample.size) + note)

    def next_spec() -> str | None:
        while (spec := sample.next()) is not None:
            if spec not in known:
                return spec
            record(known[spec], " (known)")
        return None

    def write() -> None:
        order = [spec for taken in sample.taken.values() for spec in taken]
        outcome["sample"] = {"size": sample.size, "candidates": sample.candidates}
        outcome["results"] = [done[spec] for spec in order if spec in done]
        # While the survey runs, what it has yet to come to stays in the file.
        rest = [r for spec, r in known.items() if spec not in done]
        results.save(out, outcome | {"results": outcome["results"] + rest})

    def config_of(spec: str) -> Transform:
        return text_config if spec.startswith("transformers:") else config

    for result in check_all(next_spec, config_of, jobs=jobs, timeout=timeout):
        record(result)
        write()
    write()
    return outcome
