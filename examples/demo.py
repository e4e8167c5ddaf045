"""Dense against Sparse Wide at 75 %, trained three ways, on handwritten digits.

All four models cost the same FLOPs per sample. Runs in a few minutes on a laptop's CPU, and needs
no data but what scikit-learn brings along. Writes `demo-output/results.json` and
`demo-output/accuracy-vs-training-flops.png`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from isoflop import SparseWide
from isoflop.errors import IsoflopError
from isoflop.lab.recipes import Recipe, get_recipe
from isoflop.lab.report import format_table, group_runs, load_run, save_figure, summary_table
from isoflop.lab.report.figures import accuracy_against_flops
from isoflop.lab.training import train

SPARSITY = 0.75
METHODS = ("dense", "static", "set", "rigl")
MAX_WORKERS = 4

# Only a folder with this file in it is ever deleted.
MARKER = ".made-by-isoflop-demo"


def fresh_folder(path: Path) -> None:
    """Make `path` an empty folder, deleting what an earlier demo left there and nothing else."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise IsoflopError(f"{path} is no folder. Choose another with --out.")
    if (path / MARKER).is_file():
        # The marker goes last, so that a demo that is killed here can still be run again.
        for entry in path.iterdir():
            if entry.name == MARKER:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        (path / MARKER).unlink()
        path.rmdir()
    elif path.is_dir() and any(path.iterdir()):
        raise IsoflopError(f"{path} was not made by this demo. Choose another with --out.")
    path.mkdir(parents=True, exist_ok=True)
    (path / MARKER).touch()


def run_demo(out: Path, recipe: Recipe, seeds: int) -> list[dict]:
    """Train every method with every seed and return the rows of the table."""
    fresh_folder(out)
    start = time.perf_counter()
    jobs = [(method, seed) for method in METHODS for seed in range(seeds)]
    runs = [out / "runs" / f"{method}-seed{seed}" for method, seed in jobs]
    # So small a model trains fastest on one core, which leaves the others to further runs. It also
    # makes the result independent of the number of cores.
    pool = ProcessPoolExecutor(
        max_workers=min(os.cpu_count() or 1, MAX_WORKERS, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    with pool:
        pending = {}
        for (method, seed), run in zip(jobs, runs, strict=True):
            transform = None if method == "dense" else SparseWide(sparsity=SPARSITY)
            future = pool.submit(
                train, recipe, run, transform=transform, method=method, seed=seed, quiet=True
            )
            pending[future] = f"{method} seed {seed}"
        try:
            for done, future in enumerate(as_completed(pending), 1):
                summary = future.result()
                print(
                    f"[{done}/{len(jobs)}] {pending[future]}: {summary['accuracy']:.2f} % "
                    f"in {summary['seconds']:.1f} s",
                    file=sys.stderr,
                )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    rows = summary_table(runs)
    results = {"sparsity": SPARSITY, "seconds": time.perf_counter() - start, "rows": rows}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (figure,) = accuracy_against_flops(group_runs(map(load_run, runs)))
    save_figure(figure, out / "accuracy-vs-training-flops.png")
    return rows


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="output folder")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model")
    parser.add_argument("--epochs", type=int, help="epochs, in place of the recipe's")
    parser.add_argument("--base-width", type=int, help="model width, in place of the recipe's")
    options = parser.parse_args(args)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    try:
        recipe = get_recipe("digits").replace(epochs=options.epochs, base_width=options.base_width)
        rows = run_demo(options.out, recipe, options.seeds)
    except IsoflopError as error:
        sys.exit(f"demo: {error}")
    print(format_table(rows))


if __name__ == "__main__":
    main()
