"""Table 6: language."""

from isoflop.lab.reproduce.grid import TABLES, Grid
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.tables.language import language_rows


@TABLES.register("table6")
def table6(preset: Preset) -> Grid:
    """Sparse Wide GPT-3 Small with SET on the Pile: mean of the Open LLM leaderboard's tasks."""
    return Grid(
        title="Table 6: Sparse Wide GPT-3 Small with SET on the Pile",
        unit="%, or perplexity",
        rows=language_rows(preset, "table6"),
    )
