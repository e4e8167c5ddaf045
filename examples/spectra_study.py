"""Do the spectral measures of masks follow accuracy? The paper's section 4 at small scale.

Trains Sparse Wide and Sparse Parallel at 50 % on Fashion-MNIST with static masks and with RigL, a few
seeds each, measures the spectra after every epoch, and correlates them with the test accuracy. Runs
that are done are skipped, and runs that were interrupted go on. Writes `results.json`, `results.csv`,
`results.md` and `report.html` beside the runs.

    python examples/spectra_study.py --data FOLDER --out spectra-study
"""

import argparse
import csv
import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import IsoflopError
from isoflop.files import write_json, write_text
from isoflop.kernels import available
from isoflop.lab.recipes import Recipe, get_recipe
from isoflop.lab.report import Group, group_runs, load_run, write_report
from isoflop.lab.report.correlation import correlate, correlate_runs
from isoflop.lab.report.figures.measures import NAMES
from isoflop.lab.report.spectra import epochs_with_spectra
from isoflop.lab.training import build_transform, train

SPARSITY = 0.5
TRANSFORMS = ("wide", "parallel")
METHODS = ("rigl", "static")
QUESTIONS = ("levels", "changes")


def run_grid(recipe: Recipe, folder: Path, data: Path | None, seeds: int) -> list[Path]:
    """Train every run of the grid that is not done, and return their directories."""
    jobs = [(s, t, m) for s in range(seeds) for t in TRANSFORMS for m in METHODS]
    runs = []
    for number, (seed, transform, method) in enumerate(jobs, 1):
        run = folder / f"{transform}-{method}-seed{seed}"
        print(f"[{number}/{len(jobs)}] {run.name}", file=sys.stderr, flush=True)
        train(
            recipe,
            run,
            transform=build_transform(transform, sparsity=SPARSITY),
            method=method,
            storage="compressed" if available() else "masked",
            seed=seed,
            data=data,
            spectra="every=1epoch",
            resume=True,
        )
        runs.append(run)
    return runs


def analyse(groups: list[Group]) -> list[dict[str, Any]]:
    """Return a row for each group, measure and question, and for the ends of all runs together."""
    rows = []
    for measure in NAMES:
        ends = []
        for group in groups:
            series = []
            for run in group.runs:
                points = [
                    (value, epoch.score)
                    for epoch in epochs_with_spectra(run)
                    if (value := epoch.measures[measure]) is not None
                ]
                series.append(np.array(points, dtype=np.float64).reshape(-1, 2))
                ends += points[-1:]
            moved = [run[-1, 0] - run[0, 0] for run in series if len(run)]
            for question in QUESTIONS:
                found = correlate(series, changes=question == "changes")
                row = {"model": group.label, "measure": measure, "question": question}
                mean = float(np.mean(moved)) if moved else None
                rows.append({**row, "mean_move": mean, **asdict(found)})
        found = correlate_runs(np.array(ends, dtype=np.float64).reshape(-1, 2))
        row = {"model": "all runs", "measure": measure, "question": "ends", "mean_move": None}
        rows.append({**row, **asdict(found)})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| model | measure | question | first to last epoch | Spearman's ρ [95 %] | runs, points |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        move = "" if row["mean_move"] is None else f"{row['mean_move']:+.4f}"
        rho = "not defined: the measure does not change"
        if row["rho"] is not None:
            rho = f"{row['rho']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        sizes = f"{row['runs']}, {row['points']}"
        cells = (row["model"], NAMES[row["measure"]], row["question"], move, rho, sizes)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("spectra-study"), help="output folder")
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument("--recipe", default="fashion-mnist", help="recipe; see isoflop list")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model")
    parser.add_argument("--epochs", type=int, help="epochs, in place of the recipe's")
    parser.add_argument("--base-width", type=int, help="model width, in place of the recipe's")
    options = parser.parse_args(args)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    try:
        recipe = get_recipe(options.recipe).replace(
            epochs=options.epochs, base_width=options.base_width
        )
        runs = run_grid(recipe, options.out / "runs", options.data, options.seeds)
        rows = analyse(group_runs(map(load_run, runs)))
        write_json(options.out / "results.json", {"recipe": asdict(recipe), "rows": rows})
        table = io.StringIO()
        writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(options.out / "results.csv", table.getvalue())
        write_text(options.out / "results.md", markdown(rows))
        write_report(runs, options.out / "report.html", title="Spectra and accuracy")
    except IsoflopError as error:
        sys.exit(f"spectra_study: {error}")
    print(markdown(rows), end="")


if __name__ == "__main__":
    main()
