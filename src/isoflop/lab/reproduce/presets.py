"""In which setting tables are made: the paper's, or stand-ins that smaller machines can train."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from isoflop.kernels import available
from isoflop.lab.reproduce.sources import Training
from isoflop.registry import Registry


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """What is trained in place of one of the paper's recipes.

    Attributes:
        recipe: Name of the recipe.
        changes: Values in place of the recipe's.
        models: What stands in for the paper's models, by name; for others it is that of the recipe.
        transfers: Whether it begins with a backbone, where the paper's recipe does.
    """

    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    transfers: bool = False


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A setting.

    Attributes:
        name: Its name.
        seeds: Number of seeds; None for the paper's.
        stand_ins: What is trained in place of the paper's recipes, by their names.
        options: Options of training methods, by name, where their own do not fit the setting.
        storage: How sparse weights are stored, where a method can train them so.
        changes: Values in place of those of every recipe, which the user asked for.
    """

    name: str
    seeds: int | None = None
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    storage: Literal["masked", "compressed"] = "masked"
    changes: Mapping[str, Any] = field(default_factory=dict)

    def stands_in(self, recipe: str) -> bool:
        """Return whether something else is trained in place of one of the paper's recipes."""
        return recipe in self.stand_ins

    def transfers(self, recipe: str) -> bool:
        """Return whether a backbone is transferred, if the paper's recipe does that."""
        return not self.stands_in(recipe) or self.stand_ins[recipe].transfers

    def train(self, recipe: str, *, model: str | None = None, **training: Any) -> Training:
        """Return a training of one of the paper's recipes in this setting.

        Args:
            recipe: The paper's recipe.
            model: The paper's model; by default the recipe's own.
            training: Further attributes of `Training`.
        """
        changes: dict[str, Any] = {} if model is None else {"model": model}
        deviations = []
        stand_in = self.stand_ins.get(recipe)
        of_paper = recipe if model is None else f"{recipe} ({_short(model)})"
        if stand_in is not None:
            recipe = stand_in.recipe
            changes = dict(stand_in.changes)
            if model is not None and model in stand_in.models:
                changes["model"] = stand_in.models[model]
            said = ", ".join(f"{k} {_short(v)}" for k, v in changes.items())
            deviations.append(f"{recipe}{f' ({said})' if said else ''} in place of {of_paper}")
            if not stand_in.transfers:
                training["backbone"] = None
        changes |= self.changes
        deviations += [f"{name} {value}" for name, value in self.changes.items()]
        method = training.get("method", "dense")
        own = {k: self.changes.get(k, v) for k, v in self.options.get(method, {}).items()}
        options = {**own, **training.pop("options", {})}
        return Training(
            recipe=recipe,
            changes=changes,
            options=options,
            deviation="; ".join(deviations),
            **{"storage": self.storage, **training},
        )


PRESETS: Registry[Callable[[], Preset]] = Registry("preset")
"""Functions that return a preset."""

_VISION = (
    "cifar100",
    "cifar100-mobilenet-v2",
    "cifar100-mobilevit-s",
    "cifar100-botnet50",
    "imagenet",
    "coco",
    "cityscapes",
)


@PRESETS.register("full")
def full() -> Preset:
    """The paper's setting."""
    return Preset(name="full")


@PRESETS.register("cpu")
def cpu() -> Preset:
    """Stand-ins that a laptop trains in hours."""
    # A BoTNet halves images more often than these can be.
    no_botnet = "isoflop:resnet50_cifar"
    # With few epochs, a learning rate that falls by epochs would still be high at the end.
    smooth = {"schedule_by": "step"}
    vision = StandIn(
        recipe="fashion-mnist",
        changes=smooth,
        models={"isoflop:resnet34": "isoflop:resnet34_cifar", "isoflop:botnet50": no_botnet},
    )
    # These are ten times as expensive as the narrow ResNet-18.
    mobile = {
        f"cifar100-{name}": StandIn(
            recipe="fashion-mnist",
            changes={"model": f"isoflop:{model}", "epochs": 5, **smooth},
        )
        for name, model in (
            ("mobilenet-v2", "mobilenet_v2_cifar"),
            ("mobilevit-s", "mobilevit_s_cifar"),
        )
    }
    return Preset(
        name="cpu",
        seeds=3,
        stand_ins={
            **dict.fromkeys(_VISION, vision),
            **mobile,
            "coco": StandIn(recipe="fashion-scenes-detection", transfers=True),
            "cityscapes": StandIn(recipe="fashion-scenes-segmentation", transfers=True),
            "cifar100-botnet50": StandIn(
                recipe="fashion-mnist", changes={"model": no_botnet, **smooth}
            ),
            "pile": StandIn(recipe="pysource"),
        },
        # A tenth of the paper's steps, so a tenth of the steps between two prunings.
        options={"granet": {"update_every": 100}},
        storage="compressed" if available() and not torch.cuda.is_available() else "masked",
    )


@PRESETS.register("smoke")
def smoke() -> Preset:
    """Stand-ins that show in minutes that everything works, and nothing else."""
    vision = StandIn(recipe="digits", changes={"epochs": 2, "update_every": 5})
    step = 16 * 256  # tokens
    text = StandIn(
        recipe="pysource",
        changes={
            "epochs": 2,
            "tokens": 20 * step,
            "warmup_tokens": 4 * step,
            "test_tokens": 2**12,
            "update_every": 5,
        },
    )
    return Preset(name="smoke", seeds=1, stand_ins={**dict.fromkeys(_VISION, vision), "pile": text})


def get_preset(name: str, **changes: Any) -> Preset:
    """Return a preset.

    Args:
        name: Its name.
        changes: Values in place of those of every recipe; those that are None change nothing.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    return dataclasses.replace(PRESETS.get(name)(), changes=given)


def _short(value: object) -> str:
    return str(value).removeprefix("isoflop:")
