"""Reports: tables and figures from run directories."""

from isoflop.report.figure1 import accuracy_against_training_flops
from isoflop.report.table import format_table, summary_table

__all__ = ["accuracy_against_training_flops", "format_table", "summary_table"]
