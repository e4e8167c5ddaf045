"""The paper's tables and figures as specifications, and what makes them."""

from isoflop.reproduce import tables as _tables  # noqa: F401  (registers them)
from isoflop.reproduce.data import DataFolders
from isoflop.reproduce.grid import TABLES, Grid, Row
from isoflop.reproduce.paper import paper_row, paper_rows
from isoflop.reproduce.presets import PRESETS, Preset, get_preset
from isoflop.reproduce.table import Reproduction, Request

__all__ = [
    "PRESETS",
    "TABLES",
    "DataFolders",
    "Grid",
    "Preset",
    "Reproduction",
    "Request",
    "Row",
    "get_preset",
    "paper_row",
    "paper_rows",
]
