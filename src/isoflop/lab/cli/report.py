"""The command `isoflop report`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from isoflop.lab.cli.output import print_json


@dataclass(kw_only=True)
class Report:
    """Write one HTML page about runs: tables, figures, plans, configurations."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    out: Path = Path("report.html")
    """The page to write."""
    bench: tuple[Path, ...] = ()
    """Results of `isoflop bench … --out FILE`, for the figures of speed."""
    figures: Path | None = None
    """Folder for the figures as files too, for print: light and dark. It is made if need be."""
    title: str = "Sparse training report"
    """Title of the page."""
    json: bool = False
    """Print the table, and what the page lacks and why, as JSON."""

    def run(self) -> None:
        """Write the page and say what it lacks."""
        from isoflop.lab.report import format_table, write_report

        written = write_report(
            self.runs, self.out, bench=self.bench, figures=self.figures, title=self.title
        )
        if self.json:
            print_json(written)
            return
        print(format_table(written["rows"]))
        for name, reason in written["missing"].items():
            print(f"without {name}: {reason}")
        for path, problems in written["problems"].items():
            print(f"{path}: {' '.join(problems)}")
        print(f"page {self.out}")
