"""The trained model of a run, from its directory alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoflop.errors import RunDirectoryError
from isoflop.files import as_path, read_json
from isoflop.kernels import compress, densify_
from isoflop.lab.recipes.base import Recipe
from isoflop.lab.tasks import TASKS, TransferTask
from isoflop.lab.training.checkpoint import PREFIX, STATE, load_checkpoint
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.masks import mask_name, set_mask
from isoflop.surgery import replace_modules
from isoflop.transforms import transform as apply_transform


@dataclass(frozen=True)
class Restored:
    """A model as a checkpoint has it.

    Attributes:
        model: The model, with its masks, on the CPU; also if the run had compressed storage.
        recipe: The recipe of the run.
        epoch: Epochs of training behind it.
        step: Optimizer steps behind it.
    """

    model: nn.Module
    recipe: Recipe
    epoch: int
    step: int


def restore(path: str | Path) -> Restored:
    """Return the model of a run as its latest checkpoint has it.

    Args:
        path: A run directory, a checkpoint in it, or the file in the checkpoint.

    Raises:
        RunDirectoryError: There is no run, it has no checkpoint, or a file of it is damaged.
    """
    run = RunDirectory(run_of(as_path(path)))
    if not run.config_path.exists():
        raise RunDirectoryError(f"{path} is no run directory and no checkpoint of one.")
    config = read_json(run.config_path)
    state = load_checkpoint(run.path)
    if state is None:
        raise RunDirectoryError(
            f"The run in {run.path} has no checkpoint yet. Wait for its first epoch."
        )
    try:
        recipe = recipe_of(config)
        model = _build(config)
        _put_masks(model, state["model"])
        _compress(model, state["model"])
        model.load_state_dict(state["model"])
        densify_(model)
        progress = state["progress"]
        return Restored(model, recipe, progress["epoch"], progress["step"])
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise RunDirectoryError(
            f"The checkpoint in {run.path} does not fit the model of its config.json: {error}. Was "
            "one of them changed, or is it no run of this version?"
        ) from error


def run_of(path: Path) -> Path:
    """Return the run directory of a checkpoint, of the file in it, or of itself."""
    if path.name == STATE:
        path = path.parent
    return path.parent if path.name.startswith(PREFIX) else path


def recipe_of(config: dict[str, Any]) -> Recipe:
    """Return the recipe in the configuration of a run."""
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in config["recipe"].items()
    }
    return Recipe(**values)


def _build(config: dict[str, Any]) -> nn.Module:
    """Return the model of a run, freshly initialised and without masks."""
    recipe = recipe_of(config)
    task = TASKS.get(recipe.task)
    if config.get("backbone") is not None:
        assert isinstance(task, TransferTask)
        return task.build_on(recipe, _build(config["backbone"]))
    model = task.build_model(recipe)
    if config["transform"] is None:
        return model
    return apply_transform(
        model,
        config["transform"],
        example_inputs=task.example_inputs(recipe),
        scope=config["scope"],
        **config["transform_config"],
    )[0]


def _compress(model: nn.Module, state: dict[str, Any]) -> None:
    """Make room for the compressed layers in `state`."""
    new: dict[nn.Module, nn.Module] = {}
    for key in state:
        path, _, name = key.rpartition(".")
        if name == "tiling":
            layer = model.get_submodule(path)
            nothing = torch.zeros_like(layer.get_parameter("weight"), dtype=torch.bool)
            new[layer] = compress(layer, nothing)
    replace_modules(model, new)


def _put_masks(model: nn.Module, state: dict[str, Any]) -> None:
    """Make room for the masks in `state`."""
    for key in state:
        owner, _, name = key.rpartition(".")
        module = model.get_submodule(owner)
        for parameter, weight in list(module._parameters.items()):
            if weight is not None and mask_name(module, parameter) == name:
                set_mask(module, parameter, torch.ones_like(weight, dtype=torch.bool))
