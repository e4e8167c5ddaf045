"""Reports: tables, figures and pages from run directories."""

from isoflop.lab.report.figure import Figure
from isoflop.lab.report.figures import FIGURES
from isoflop.lab.report.page import draw_all, write_report
from isoflop.lab.report.runs import Group, Run, group_runs, load_run
from isoflop.lab.report.static import check_figure_path, save_figure
from isoflop.lab.report.table import format_spectra, format_table, summary_table

__all__ = [
    "FIGURES",
    "Figure",
    "Group",
    "Run",
    "check_figure_path",
    "draw_all",
    "format_spectra",
    "format_table",
    "group_runs",
    "load_run",
    "save_figure",
    "summary_table",
    "write_report",
]
