"""Trained classifiers whose layers begin a network for another task, masks included."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoflop.budget import TOLERANCE
from isoflop.errors import BudgetError, IsoflopError, RunDirectoryError
from isoflop.files import read_json
from isoflop.flops.trace import profile
from isoflop.lab.recipes.base import Recipe
from isoflop.lab.tasks import TASKS, TransferTask
from isoflop.lab.training.checkpoint import load_checkpoint
from isoflop.lab.training.restore import recipe_of, restore, run_of
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.methods import Dense, Static
from isoflop.methods.base import METHODS, Method
from isoflop.model_registry import MODELS

_OWN_OPTIONS = ("seed", "data", "spectra")
"""Options of a classifier's run that do not tell how its model is built or was trained."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A trained classifier, or a network that begins with its layers.

    Attributes:
        config: Options of the classifier's run that tell how it is built and was trained.
        origin: Which run that was, and how far it had come: path, epoch, step and a digest of
            parameters and buffers.
        model: The classifier with its masks; or, if it is `attached`, the whole network.
        attached: Whether the classifier's layers are in a network already.
        tolerance: Largest relative gap between its FLOPs and those of the dense backbone.
    """

    config: dict[str, Any]
    origin: dict[str, Any]
    model: nn.Module
    attached: bool = False
    tolerance: float = TOLERANCE

    @property
    def sparse(self) -> bool:
        """Whether it has masks."""
        return METHODS.get(self.config["method"]).masks_weights

    def method(self, given: Method) -> Method:
        """Return the method that leaves its masks as they are.

        Raises:
            IsoflopError: Another method was asked for.
        """
        kept = Static() if self.sparse else Dense()
        if not isinstance(given, (Dense, type(kept))):
            raise IsoflopError(
                f"The masks of a backbone stay as they are, so the method {given.name!r} has nothing to "
                "do. Leave out --method."
            )
        return kept

    def network(self, recipe: Recipe) -> nn.Module:
        """Return the recipe's model, begun with these layers, masks included.

        Raises:
            IsoflopError: The recipe's model begins with other layers.
        """
        if self.attached:
            return self.model
        task, path = _transfer_task(recipe), _backbone_path(recipe)
        own, wanted = _dense_network(recipe, self.config), _dense_network(recipe, None)
        shapes, expected = (_shapes(network.get_submodule(path)) for network in (own, wanted))
        if shapes != expected:
            name = next(n for n in (*expected, *shapes) if expected.get(n) != shapes.get(n))
            raise IsoflopError(
                f"The backbone in {self.origin['path']} is {self._name}, which is not what "
                f"{recipe.model} begins with: {name} is {_size(shapes, name)} there and "
                f"{_size(expected, name)} here. Train a classifier of the same architecture and width, "
                "for images of as many channels."
            )
        return task.build_on(recipe, self.model)

    def costs(self, recipe: Recipe, network: nn.Module) -> dict[str, Any]:
        """Return what a network that begins with these layers costs, part by part.

        Args:
            recipe: The recipe.
            network: The network, with its masks.

        Returns:
            MACs of a sample: `macs` of the backbone and `dense_macs` of that of the dense network,
            their `relative_gap`, and `added_macs`, which the other layers cost more than in the dense
            network because the backbone's maps have more channels; and `dense_network_macs`.

        Raises:
            BudgetError: The backbone costs more or less than that of the dense network.
        """
        inputs, path = TASKS.get(recipe.task).example_inputs(recipe), _backbone_path(recipe)
        table, dense = profile(network, inputs), profile(_dense_network(recipe, None), inputs)
        macs, dense_macs = table.by_module()[path], dense.by_module()[path]
        gap = (macs - dense_macs) / dense_macs
        if abs(gap) > self.tolerance:
            raise BudgetError(
                f"The backbone in {self.origin['path']} costs {macs:,} MACs on samples of this recipe, "
                f"{gap:+.2e} of the dense one's {dense_macs:,} more. The budget of a whole classifier "
                "holds with its last layer and at its own resolution only. Train one in which every "
                "layer meets its own (--scope layers --sparse-ends), or accept the gap "
                f"(--backbone-gap {_rounded_up(abs(gap))})."
            )
        return {
            "run": self.origin["path"],
            "recipe": self.config["recipe"]["name"],
            "transform": self.config["transform"],
            "sparsity": self.config["sparsity"],
            "method": self.config["method"],
            "macs": macs,
            "dense_macs": dense_macs,
            "relative_gap": gap,
            "added_macs": (table.macs - macs) - (dense.macs - dense_macs),
            "dense_network_macs": dense.macs,
        }

    @property
    def _name(self) -> str:
        recipe = self.config["recipe"]
        width = recipe.get("base_width")
        return recipe["model"] + (f" of width {width}" if width else "")


def find_backbone(
    path: str | Path | None, run: RunDirectory, *, resume: bool, tolerance: float = TOLERANCE
) -> Backbone | None:
    """Return the backbone that a run is to begin with.

    A run that has a checkpoint holds all that it needs, and goes on even if the classifier's run is
    gone.

    Args:
        path: Directory of the classifier's run, or None.
        run: Where the run is, or will be.
        resume: Whether it goes on.
        tolerance: Largest relative gap between its FLOPs and those of the dense backbone.

    Raises:
        IsoflopError: The run at `path` trained no classifier.
        RunDirectoryError: There is no run, it has no checkpoint, or a file of it is damaged.
    """
    config = read_json(run.config_path) if resume and run.config_path.exists() else {}
    if config.get("backbone") is not None and (path is None or not Path(path).exists()):
        if load_checkpoint(run.path) is not None:
            return Backbone(
                config=config["backbone"],
                origin=config["backbone_run"],
                model=restore(run.path).model,
                attached=True,
                tolerance=tolerance,
            )
        if path is None:
            raise RunDirectoryError(
                f"The run in {run.path} was interrupted before its first checkpoint, so it has to begin "
                f"with its backbone again: --backbone {config['backbone_run']['path']}"
            )
    return None if path is None else _read(Path(path), tolerance)


def _read(path: Path, tolerance: float) -> Backbone:
    restored = restore(path)
    run = RunDirectory(run_of(path))
    config = read_json(run.config_path)
    task = recipe_of(config).task
    if task != "classification":
        raise IsoflopError(
            f"The run in {run.path} trained a model for {task}, not a classifier whose layers could be "
            "a backbone."
        )
    digest = hashlib.sha256()
    for name, tensor in restored.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return Backbone(
        config={name: value for name, value in config.items() if name not in _OWN_OPTIONS},
        origin={
            "path": str(run.path),
            "epoch": restored.epoch,
            "step": restored.step,
            "digest": digest.hexdigest(),
        },
        model=restored.model,
        tolerance=tolerance,
    )


def _transfer_task(recipe: Recipe) -> TransferTask:
    task = TASKS.get(recipe.task)
    if not isinstance(task, TransferTask):
        raise IsoflopError(
            f"The task {recipe.task!r} of the recipe {recipe.name!r} takes no backbone. Leave out "
            "--backbone."
        )
    return task


def _backbone_path(recipe: Recipe) -> str:
    source, _, name = recipe.model.partition(":")
    path = MODELS.get(name).backbone if source == "isoflop" else None
    if path is None:
        known = ", ".join(f"isoflop:{name}" for name, entry in MODELS.items() if entry.backbone)
        raise IsoflopError(f"{recipe.model} takes no backbone. Models that do: {known}.")
    return path


def _dense_network(recipe: Recipe, classifier: dict[str, Any] | None) -> nn.Module:
    """Return the recipe's dense model without values, on a classifier of a run if one is given."""
    task = _transfer_task(recipe)
    with torch.device("meta"):
        if classifier is None:
            return task.build_model(recipe)
        own = recipe_of(classifier)
        return task.build_on(recipe, TASKS.get(own.task).build_model(own))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _size(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return "×".join(map(str, shapes[name])) if name in shapes else "missing"


def _rounded_up(gap: float) -> str:
    """Return a short number that is not below `gap`."""
    unit = 10.0 ** (math.floor(math.log10(gap)) - 1)
    return f"{math.ceil(gap / unit) * unit:.2g}"
