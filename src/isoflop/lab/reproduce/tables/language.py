"""What tables 6 and 15 have in common: GPT-3 Small on the Pile."""

from isoflop.lab.reproduce.grid import Row, rows_of
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Evaluation, Missing, Source, Training
from isoflop.transforms import SparseWide


def language_rows(preset: Preset, table: str) -> tuple[Row, ...]:
    """Return the rows of a table, and the perplexity of each model, which the paper does not print.

    Args:
        preset: The setting.
        table: Name of the table.
    """

    def source(measure: str, sparsity: float) -> Source:
        if preset.stands_in("pile"):
            return Missing(reason="the stand-in is too small for these tasks")
        return Evaluation(training=pile(preset, sparsity), measure=measure)

    rows = rows_of(table, lambda labels: source(str(labels["measure"]), float(labels["sparsity"])))
    sparsities = dict.fromkeys(float(row.labels["sparsity"]) for row in rows)
    perplexities = (
        Row(labels={"measure": "perplexity", "sparsity": s}, source=pile(preset, s))
        for s in sparsities
    )
    return (*rows, *perplexities)


def pile(preset: Preset, sparsity: float) -> Training:
    """Return the training of GPT-3 Small, dense or Sparse Wide with SET (appendix D).

    The recipe says that every layer meets its own budget, as in the paper.
    """
    if sparsity == 0:
        return preset.train("pile", method="dense")
    return preset.train("pile", transform=SparseWide(sparsity), method="set")
