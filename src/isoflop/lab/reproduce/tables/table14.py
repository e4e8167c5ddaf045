"""Table 14: the widths of Sparse Wide GPT-3 Small."""

import functools

from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.paper import Labels
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Computed
from isoflop.lab.reproduce.tables.table13 import SPEC, gpt3_small
from isoflop.model_specs import default_example_shape
from isoflop.model_specs import example_inputs as inputs_of
from isoflop.transforms import SparseWide, transform


@TABLES.register("table14")
def table14(preset: Preset) -> Grid:
    """Widths of GPT-3 Small and its Sparse Wide forms, from the transform on the meta device.

    The paper prints 1092 and 4344 at 50 %, which do not fit one another: √2 · 768 is 1086, a quarter
    of 4344, and 1092 is 12 heads of 91.
    """
    del preset  # nothing is trained

    def source(labels: Labels) -> Computed:
        width, sparsity = str(labels["property"]), float(labels["sparsity"])
        return Computed(value=lambda: widths(sparsity)[width])

    return Grid(
        title="Table 14: widths of GPT-3 Small and its Sparse Wide forms",
        unit="channels",
        figure=None,
        seeds=1,
        rows=rows_of("table14", source),
    )


@functools.cache
def widths(sparsity: float) -> dict[str, int]:
    """Return `d_model` and `d_ff` of Sparse Wide GPT-3 Small, of the dense one at sparsity 0."""
    model = gpt3_small()
    if sparsity:
        inputs = inputs_of(SPEC, default_example_shape(SPEC, model), meta=True)
        wide = SparseWide(sparsity)
        model, _ = transform(model, wide, example_inputs=inputs, scope="layers")
    # Hugging Face stores these weights (in, out).
    d_model, d_ff = model.get_parameter("transformer.h.0.mlp.c_fc.weight").shape
    return {"d_model": d_model, "d_ff": d_ff}
