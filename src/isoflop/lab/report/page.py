"""The report: one HTML page about runs that opens anywhere, offline."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import FigureError, RunDirectoryError
from isoflop.files import as_path, make_folder, new_file, to_json, write_text
from isoflop.lab.report.figure import Figure
from isoflop.lab.report.figures import FIGURES
from isoflop.lab.report.figures.speed import read_bench, relative_times, speed_ups
from isoflop.lab.report.interactive import interactive
from isoflop.lab.report.runs import Group, Run, flat, group_runs, load_run
from isoflop.lab.report.static import save_figure
from isoflop.lab.report.table import result_text, rows_of
from isoflop.optional import require

_ENVIRONMENT = ("device", "processes", "mixed_precision", "versions")


def write_report(
    runs: Iterable[str | Path],
    out: str | Path,
    *,
    bench: Iterable[str | Path] = (),
    figures: str | Path | None = None,
    title: str = "Sparse training report",
) -> dict[str, Any]:
    """Write a page with everything that run directories say.

    The page holds all it needs, and asks for nothing else. Runs that are not complete, or damaged,
    are in it as far as they go, and the page says what is missing.

    Args:
        runs: Run directories.
        out: The page to write.
        bench: Files of results of `isoflop bench`, for the figures of speed.
        figures: Folder for the figures as files too, as `NAME-light.png` and `NAME-dark.png`; it is
            made if it is not there.
        title: Title of the page.

    Returns:
        `rows`, those of `summary_table`; `missing`, why each figure that is not there is not, by
        name; and `problems`, what is wrong with runs, by path.

    Raises:
        RunDirectoryError: There is no run, a directory holds none, or two runs share a seed.
        IsoflopError: There is no folder for the page, or it cannot be made for the figures, or a file
            of results holds none.
    """
    groups = group_runs([load_run(path) for path in runs])
    if not groups:
        raise RunDirectoryError("There are no runs to report on. Give run directories.")
    out = new_file(out)
    if figures is not None:
        make_folder(as_path(figures))
    drawn, missing = draw_all(groups, [read_bench(path) for path in bench])
    if figures is not None:
        for figure in drawn:
            for theme in ("light", "dark"):
                save_figure(figure, Path(figures) / f"{figure.name}-{theme}.png", theme=theme)
    rows = rows_of(groups)
    write_text(out, _render(title, groups, rows, drawn, missing))
    problems = {str(run.path): list(run.problems) for g in groups for run in g.runs if run.problems}
    return {"rows": rows, "missing": missing, "problems": problems}


def draw_all(
    groups: Sequence[Group], bench: Sequence[Sequence[dict[str, Any]]] = ()
) -> tuple[list[Figure], dict[str, str]]:
    """Return every figure that the data allow, and why the others are missing, by name.

    Args:
        groups: Groups of runs.
        bench: The results of each file of `isoflop bench`.
    """
    functions = {name: functools.partial(function, groups) for name, function in FIGURES.items()}
    functions["relative-times"] = functools.partial(relative_times, bench)
    functions["speed-ups"] = functools.partial(speed_ups, bench)
    drawn, missing = [], {}
    for name, function in functions.items():
        try:
            drawn += function()
        except FigureError as error:
            missing[name] = str(error)
    return drawn, missing


def _render(
    title: str,
    groups: Sequence[Group],
    rows: Sequence[dict[str, Any]],
    drawn: Sequence[Figure],
    missing: dict[str, str],
) -> str:
    jinja = require("jinja2", "train")
    environment = jinja.Environment(
        loader=jinja.PackageLoader("isoflop.lab.report", "templates"),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        result_text=result_text,
        rows=rows,
        tasks=list(dict.fromkeys(group.task for group in groups)),
        figures=drawn,
        missing=missing,
        runs=[_details(group, run) for group in groups for run in group.runs],
        plotly=_script(require("plotly.offline", "train").get_plotlyjs()),
        data=_script(_json([interactive(figure) for figure in drawn])),
    )


def _script(text: str) -> Any:
    """Return code that the template is to leave as it is."""
    assert "</script" not in text
    return require("markupsafe", "train").Markup(text)


def _json(data: Any) -> str:
    # With no "<" there is no end tag and no comment in it, whatever the runs are called.
    return to_json(data).replace("<", "\\u003c")


def _details(group: Group, run: Run) -> dict[str, Any]:
    """Return what the page says of one run."""
    summary = run.summary or {}
    return {
        "name": f"{group.label}, seed {run.config['seed']}",
        "path": str(run.path),
        "problems": run.problems,
        "plan": run.plan,
        "config": flat(run.config),
        "environment": flat({key: summary[key] for key in _ENVIRONMENT if key in summary}),
        "spectra_seconds": summary.get("spectra_seconds"),
    }
