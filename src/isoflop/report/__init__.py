"""Reports: tables, figures and pages from run directories."""

from isoflop.report.figure import Figure
from isoflop.report.figures import FIGURES
from isoflop.report.page import draw_all, write_report
from isoflop.report.runs import Group, Run, group_runs, load_run
from isoflop.report.static import check_figure_path, save_figure
from isoflop.report.table import format_spectra, format_table, summary_table

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
