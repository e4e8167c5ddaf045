"""Table 15: language, task by task."""

from isoflop.lab.reproduce.grid import TABLES, Grid
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.tables.language import language_rows


@TABLES.register("table15")
def table15(preset: Preset) -> Grid:
    """Sparse Wide GPT-3 Small with SET on the Pile: each of the Open LLM leaderboard's tasks."""
    return Grid(
        title="Table 15: Sparse Wide GPT-3 Small on the Open LLM leaderboard's tasks",
        unit="%, or perplexity",
        rows=language_rows(preset, "table15"),
    )
