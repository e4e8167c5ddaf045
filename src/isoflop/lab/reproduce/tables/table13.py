"""Table 13: the size of GPT-3 Small and how it is trained."""

import functools
from collections.abc import Callable

from torch import nn

from isoflop.lab.recipes import get_recipe
from isoflop.lab.reproduce.grid import TABLES, Grid, rows_of
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Computed
from isoflop.model_specs import build_model

SPEC = "isoflop:gpt3_small"


@TABLES.register("table13")
def table13(preset: Preset) -> Grid:
    """The size of GPT-3 Small, counted on the model, and the settings of its training."""
    del preset  # nothing is trained
    return Grid(
        title="Table 13: GPT-3 Small and its training",
        unit="as said",
        figure=None,
        seeds=1,
        rows=rows_of(
            "table13", lambda labels: Computed(value=_PROPERTIES[str(labels["property"])])
        ),
    )


@functools.cache
def gpt3_small() -> nn.Module:
    """Return GPT-3 Small on the meta device."""
    return build_model(SPEC, meta=True)


def _parameters() -> float:
    return sum(parameter.numel() for parameter in gpt3_small().parameters())


def _of_model(name: str) -> Callable[[], float]:
    return lambda: getattr(gpt3_small().get_submodule("transformer").config, name)


def _of_recipe(name: str) -> Callable[[], float]:
    return lambda: float(getattr(get_recipe("pile"), name))


_PROPERTIES: dict[str, Callable[[], float]] = {
    "parameters": _parameters,
    "layers": _of_model("n_layer"),
    "d_model": _of_model("n_embd"),
    "heads": _of_model("n_head"),
    "d_head": lambda: _of_model("n_embd")() / _of_model("n_head")(),
    "batch size": _of_recipe("batch_size"),
    "learning rate": _of_recipe("lr"),
    "tokens": _of_recipe("tokens"),
}
