"""The paper's tables and figures as specifications, and what makes them."""

from isoflop.lab.reproduce import tables as _tables  # noqa: F401  (registers them)
from isoflop.lab.reproduce.data import DataFolders
from isoflop.lab.reproduce.grid import TABLES, Grid, Row
from isoflop.lab.reproduce.paper import paper_row, paper_rows
from isoflop.lab.reproduce.presets import PRESETS, Preset, get_preset
from isoflop.lab.reproduce.table import Reproduction, Request

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
