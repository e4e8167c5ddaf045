"""Recipes: every hyperparameter of a training run, with the source that it comes from."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from isoflop.errors import IsoflopError
from isoflop.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a model is trained.

    The defaults are those of the CIFAR experiments of the paper (arXiv 2303.11525, appendix C.1).
    """

    name: str
    """Name of the recipe."""
    dataset: str
    """Registered name of the data set."""
    model: str
    """Model specification, such as `isoflop:resnet18_cifar`."""
    num_classes: int
    """Outputs of the classifier."""
    input_shape: tuple[int, ...]
    """Shape of one sample."""
    base_width: int | None = None
    """Channels of the model's first stage; none for the model's own."""
    epochs: int = 200
    """Passes over the training set (paper, C.1)."""
    batch_size: int = 128
    """Samples of a step over all processes (paper, C.1)."""
    drop_last: bool = False
    """Leave out a last batch that is smaller."""
    lr: float = 0.1
    """Initial learning rate (paper, C.1)."""
    momentum: float = 0.9
    """Momentum of SGD (paper, C.1)."""
    nesterov: bool = True
    """Nesterov's form of the momentum (paper, C.1)."""
    weight_decay: float = 5e-4
    """Weight decay (paper, C.1)."""
    decay_norm_and_bias: bool = False
    """Whether biases and norm parameters decay too; not so in the paper (C.1)."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """Course of the learning rate, by epoch."""
    milestones: tuple[int, ...] = (60, 120, 160)
    """Epochs at which the multistep schedule multiplies the rate by `gamma` (paper, C.1)."""
    gamma: float = 0.2
    """Factor of the multistep schedule: a division by 5 (paper, C.1)."""
    warmup_epochs: int = 0
    """Epochs over which the rate rises linearly, step by step; none in the paper's CIFAR runs."""
    label_smoothing: float = 0.0
    """Label smoothing of the loss; the paper has it for ImageNet only (0.1)."""
    alpha: float = 0.3
    """Fraction of the weights that the first mask update moves (paper, section 4; RigL)."""
    update_every: int = 100
    """Steps between two mask updates (paper, section 4; RigL)."""
    end_fraction: float = 0.75
    """Part of the training after which the masks stay fixed (paper, section 4; RigL)."""

    def __post_init__(self) -> None:
        """Reject values that no run could have."""
        positive = ("num_classes", "epochs", "batch_size", "update_every")
        for field in positive:
            if getattr(self, field) < 1:
                raise IsoflopError(f"{field} must be at least 1, not {getattr(self, field)}.")
        if self.base_width is not None and self.base_width < 1:
            raise IsoflopError(f"base_width must be at least 1, not {self.base_width}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise IsoflopError(f"lr must be positive, not {self.lr}.")
        for field in ("momentum", "weight_decay", "warmup_epochs", "label_smoothing"):
            if not getattr(self, field) >= 0:
                raise IsoflopError(f"{field} must not be negative, not {getattr(self, field)}.")
        if not 0 < self.alpha <= 1 or not 0 <= self.end_fraction <= 1:
            raise IsoflopError("alpha must be in (0, 1] and end_fraction in [0, 1].")
        if self.schedule not in ("multistep", "cosine"):
            raise IsoflopError(f"Unknown schedule {self.schedule!r}. Known: multistep, cosine.")

    def replace(self, **changes: object) -> "Recipe":
        """Return the recipe with some values changed; those that are None stay.

        Another number of epochs moves the milestones in proportion, unless they are given too.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        epochs = changes.get("epochs")
        if isinstance(epochs, int) and "milestones" not in changes:
            scaled = (round(m * epochs / self.epochs) for m in self.milestones)
            changes["milestones"] = tuple(scaled)
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, the first being 0."""
        epoch = step // steps_per_epoch
        warmup_steps = self.warmup_epochs * steps_per_epoch
        if step < warmup_steps:
            return self.lr * (step + 1) / warmup_steps
        if self.schedule == "multistep":
            return self.lr * self.gamma ** sum(epoch >= m for m in self.milestones)
        progress = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))


RECIPES: Registry[Callable[[], Recipe]] = Registry("recipe")
"""Functions that return a recipe."""


@RECIPES.register("digits")
def digits() -> Recipe:
    """Small ResNet on scikit-learn's 8×8 digits: seconds on a laptop, no download."""
    return Recipe(
        name="digits",
        dataset="digits",
        model="isoflop:resnet8_digits",
        num_classes=10,
        input_shape=(1, 8, 8),
        base_width=16,
        epochs=25,
        batch_size=64,
        drop_last=True,
        schedule="cosine",
        # The paper's 75 % of 78,200 steps at one update per 100 is out of reach of 525 steps.
        update_every=20,
    )


@RECIPES.register("fashion-mnist")
def fashion_mnist() -> Recipe:
    """Narrow ResNet-18 on Fashion-MNIST: minutes on a laptop; needs its four files."""
    return Recipe(
        name="fashion-mnist",
        dataset="fashion-mnist",
        model="isoflop:resnet18_cifar",
        num_classes=10,
        input_shape=(1, 28, 28),
        base_width=8,
        epochs=15,
        drop_last=True,
        schedule="cosine",
    )


@RECIPES.register("cifar10")
def cifar10() -> Recipe:
    """ResNet-18 on CIFAR-10 with the paper's CIFAR-100 hyperparameters (appendix C.1)."""
    return Recipe(
        name="cifar10",
        dataset="cifar10",
        model="isoflop:resnet18_cifar",
        num_classes=10,
        input_shape=(3, 32, 32),
        base_width=64,
    )


@RECIPES.register("cifar100")
def cifar100() -> Recipe:
    """ResNet-18 on CIFAR-100 as in the paper (appendix C.1)."""
    return Recipe(
        name="cifar100",
        dataset="cifar100",
        model="isoflop:resnet18_cifar",
        num_classes=100,
        input_shape=(3, 32, 32),
        base_width=64,
    )


def get_recipe(name: str) -> Recipe:
    """Return the recipe called `name`."""
    return RECIPES.get(name)()
