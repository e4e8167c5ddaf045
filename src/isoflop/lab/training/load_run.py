"""The model of a run, with its plan and how it was built."""

from pathlib import Path
from typing import Any

from torch import nn

from isoflop.files import read_json
from isoflop.io.source import BackboneSource, ModelSource
from isoflop.lab.training.restore import restore
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.model_specs import takes_tokens
from isoflop.plan import Plan


def load_run(path: str | Path) -> tuple[nn.Module, Plan | None, ModelSource]:
    """Return the model that a run has trained so far, its plan, and how it was built.

    Sparse layers of a run with compressed storage come back as dense ones with masks.

    Args:
        path: A run directory, which `isoflop train` wrote.

    Raises:
        RunDirectoryError: There is no run, or it has no checkpoint yet, or a damaged one.
    """
    run = RunDirectory(path)
    config = read_json(run.config_path)
    model = restore(run.path).model
    source = _source_of(config)
    planned = config["transform"] is not None and run.plan_path.exists()
    return model, Plan.load(run.plan_path) if planned else None, source


def _source_of(config: dict[str, Any]) -> ModelSource:
    """Return how the dense model of a run was built."""
    recipe, backbone = config["recipe"], config.get("backbone")
    shape = tuple(recipe["input_shape"])
    sizes: dict[str, Any] = {"base_width": recipe["base_width"], "input_shape": shape}
    if takes_tokens(recipe["model"]):
        sizes |= {"vocab_size": recipe["num_classes"], "context": shape[0]}
    else:
        channels = None if shape[0] == 3 else shape[0]
        sizes |= {"num_classes": recipe["num_classes"], "in_channels": channels}
    if backbone is not None:
        sizes["backbone"] = BackboneSource(
            source=_source_of(backbone),
            transform=backbone["transform"],
            config=backbone["transform_config"],
            scope=backbone["scope"],
        )
    return ModelSource(spec=recipe["model"], **sizes)
