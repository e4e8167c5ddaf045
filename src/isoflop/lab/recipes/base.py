"""Recipes: every hyperparameter of a training run, with the source that it comes from."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from isoflop.errors import IsoflopError
from isoflop.registry import Registry

_NOT_NEGATIVE = (
    "momentum", "weight_decay", "warmup_epochs", "warmup_steps", "warmup_tokens", "warmup_lr",
    "final_lr", "label_smoothing",
)  # fmt: skip

_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("multistep", "cosine", "poly"),
    "schedule_by": ("epoch", "step"),
    "scope": ("model", "layers"),
    "mixed_precision": (None, "no", "fp16", "bf16"),
}


_APPLIES = {
    "momentum": ("optimizer", ("sgd",)),
    "nesterov": ("optimizer", ("sgd",)),
    "betas": ("optimizer", ("adamw",)),
    "eps": ("optimizer", ("adamw",)),
    "milestones": ("schedule", ("multistep",)),
    "gamma": ("schedule", ("multistep",)),
    "power": ("schedule", ("poly",)),
    "final_lr": ("schedule", ("cosine", "poly")),
    "schedule_by": ("schedule", ("cosine", "poly")),
    "test_tokens": ("task", ("language",)),
    "scale_range": ("task", ("segmentation",)),
}
"""Which choices some values belong to."""

METHOD_OPTIONS = ("alpha", "update_every", "end_fraction")
"""Values that are options of methods which change masks."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a model is trained.

    The defaults are those of the CIFAR experiments of the paper (arXiv 2303.11525, appendix C.1).
    """

    name: str
    """Name of the recipe."""
    task: str = "classification"
    """Registered name of what the model is trained for."""
    dataset: str
    """Registered name of the data set."""
    model: str
    """Model specification, such as `isoflop:resnet18_cifar`."""
    num_classes: int
    """Outputs of the classifier; of a language model, the size of the vocabulary."""
    input_shape: tuple[int, ...]
    """Shape of one sample; of a language model, the length of its context."""
    base_width: int | None = None
    """Channels of the model's first stage; none for the model's own."""
    epochs: int = 200
    """Passes over the training set (paper, C.1). Where `steps` or `tokens` say how long to train: the
    equal parts of the training, after each of which the model is evaluated."""
    steps: int | None = None
    """Optimizer steps of the whole training, in place of passes over the training set."""
    tokens: int | None = None
    """Tokens of the whole training, in place of passes over the training set."""
    batch_size: int = 128
    """Samples of a step over all processes (paper, C.1)."""
    drop_last: bool = False
    """Leave out a last batch that is smaller."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The optimizer (paper, C.1)."""
    lr: float = 0.1
    """Initial learning rate (paper, C.1)."""
    sparse_lr: float | None = None
    """Initial learning rate where the model begins with a sparse backbone; none for `lr`."""
    momentum: float = 0.9
    """Momentum of SGD (paper, C.1)."""
    nesterov: bool = True
    """Nesterov's form of the momentum (paper, C.1)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    eps: float = 1e-8
    """AdamW's term against division by zero."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; larger ones are scaled down."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Type of the arithmetic; none for what Accelerate is configured for, which is 32 bits."""
    weight_decay: float = 5e-4
    """Weight decay (paper, C.1)."""
    decay_norm_and_bias: bool = False
    """Whether biases and norm parameters decay too; not so in the paper (C.1)."""
    schedule: Literal["multistep", "cosine", "poly"] = "multistep"
    """Course of the learning rate."""
    schedule_by: Literal["epoch", "step"] = "epoch"
    """Whether the rate changes after epochs or after every step."""
    milestones: tuple[int, ...] = (60, 120, 160)
    """Epochs at which the multistep schedule multiplies the rate by `gamma` (paper, C.1)."""
    gamma: float = 0.2
    """Factor of the multistep schedule: a division by 5 (paper, C.1)."""
    power: float = 0.9
    """Exponent of the poly schedule, of the part that is left of the training."""
    final_lr: float = 0.0
    """Where the cosine and the poly schedule end."""
    warmup_epochs: int = 0
    """Epochs over which the rate rises linearly, step by step; none in the paper's CIFAR runs."""
    warmup_steps: int = 0
    """Steps of the linear rise, beside those of `warmup_epochs`."""
    warmup_tokens: int = 0
    """Tokens of the linear rise, beside those of the others."""
    warmup_lr: float = 0.0
    """Where the linear rise begins."""
    scope: Literal["model", "layers"] = "model"
    """What meets the FLOP budget of a transform: the whole model, or each layer (the paper's GPT)."""
    test_tokens: int | None = None
    """Tokens of held-out text that are enough to measure a language model; none for all there are."""
    label_smoothing: float = 0.0
    """Label smoothing of the loss; the paper has it for ImageNet only (0.1)."""
    scale_jitter: tuple[int, int] | None = None
    """Least and largest shorter side of a training image before its random crop; none where images
    keep their size (paper, C.1: ImageNet)."""
    test_scale: int | None = None
    """Shorter side of a test image before its central crop, likewise."""
    scale_range: tuple[float, float] | None = None
    """Least and largest factor by which a training image is scaled before its random crop, for
    segmentation (paper, C.3.4)."""
    alpha: float = 0.3
    """Fraction of the weights that the first mask update moves (paper, section 4; RigL)."""
    update_every: int = 100
    """Steps between two mask updates (paper, section 4; RigL)."""
    end_fraction: float = 0.75
    """Part of the training after which the masks stay fixed (paper, section 4; RigL)."""
    given: tuple[str, ...] = ()
    """Names of the values that `replace` was given in place of the recipe's own."""

    def __post_init__(self) -> None:
        """Reject values that no run could have."""
        positive = ("num_classes", "epochs", "batch_size", "update_every")
        for field in positive:
            if getattr(self, field) < 1:
                raise IsoflopError(f"{field} must be at least 1, not {getattr(self, field)}.")
        for field in ("base_width", "steps", "tokens", "test_scale", "test_tokens"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise IsoflopError(f"{field} must be at least 1, not {getattr(self, field)}.")
        if self.steps is not None and self.tokens is not None:
            raise IsoflopError("A recipe trains for a number of steps or of tokens, not both.")
        if (self.tokens or self.warmup_tokens) and len(self.input_shape) != 1:
            raise IsoflopError(
                "tokens and warmup_tokens are for language models, whose input_shape is the context; a "
                f"sample of {self.name!r} has the shape {self.input_shape}. Use epochs or steps."
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise IsoflopError(f"lr must be positive, not {self.lr}.")
        if self.sparse_lr is not None and not (
            math.isfinite(self.sparse_lr) and self.sparse_lr > 0
        ):
            raise IsoflopError(f"sparse_lr must be positive, not {self.sparse_lr}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise IsoflopError(f"clip_norm must be positive, not {self.clip_norm}.")
        for field in _NOT_NEGATIVE:
            if not getattr(self, field) >= 0:
                raise IsoflopError(f"{field} must not be negative, not {getattr(self, field)}.")
        if self.scale_jitter is not None and not 1 <= self.scale_jitter[0] <= self.scale_jitter[1]:
            raise IsoflopError(
                f"scale_jitter must be two lengths in order, not {self.scale_jitter}."
            )
        if self.scale_range is not None and not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise IsoflopError(f"scale_range must be two factors in order, not {self.scale_range}.")
        if not 0 < self.alpha <= 1 or not 0 <= self.end_fraction <= 1:
            raise IsoflopError("alpha must be in (0, 1] and end_fraction in [0, 1].")
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                names = ", ".join(str(name) for name in known)
                raise IsoflopError(f"Unknown {field} {getattr(self, field)!r}. Known: {names}.")

    def replace(self, **changes: object) -> "Recipe":
        """Return the recipe with some values changed; those that are None stay.

        What is changed is known as given for a run, even if it has the value that it had: where it has
        no effect, that run is refused. A recipe of your own for runs with several methods is made by
        `Recipe(…)` or `dataclasses.replace`: its `alpha`, `update_every` and `end_fraction` go to the
        methods that have them, in place of the method's own where they are not the paper's. Another
        number of epochs moves the milestones in proportion, unless they are given too.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        changes["given"] = tuple(dict.fromkeys([*self.given, *changes]))
        epochs = changes.get("epochs")
        if isinstance(epochs, int) and "milestones" not in changes:
            scaled = (round(m * epochs / self.epochs) for m in self.milestones)
            changes["milestones"] = tuple(scaled)
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def check_given(self) -> None:
        """Raise if a value was given that has no effect beside the others."""
        for name in self.given:
            field, values = _APPLIES.get(name, (name, ()))
            value = getattr(self, field)
            if values and value not in values:
                raise IsoflopError(
                    f"{name} was given, but has no effect with the {field} {value!r}; it belongs to "
                    f"{' and '.join(map(repr, values))}. Leave it out, or change {field} too."
                )

    def steps_per_epoch(self, samples: int | None) -> int:
        """Return the optimizer steps of an epoch.

        Args:
            samples: Number of training samples; None for a stream, which needs `steps` or `tokens`.
        """
        total = self.steps
        if self.tokens is not None:
            total = self.tokens / self._tokens_per_step
        if total is not None:
            return max(1, round(total / self.epochs))
        if samples is None:
            raise IsoflopError(
                f"The data of the recipe {self.name!r} have no end. Say how long to train by `tokens` "
                "or `steps`."
            )
        return steps_per_epoch(samples, self.batch_size, self.drop_last)

    def samples_of_batch(self, index: int, samples: int | None) -> int:
        """Return how many samples a batch of an epoch has over all processes, the first being 0.

        Args:
            index: Number of the batch in the epoch.
            samples: Number of training samples; None for a stream, all of whose batches are whole.
        """
        if samples is None:
            return self.batch_size
        return min(self.batch_size, samples - index * self.batch_size)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, the first being 0."""
        warmup_steps = self.warmup_epochs * steps_per_epoch + self.warmup_steps
        if self.warmup_tokens:
            warmup_steps += round(self.warmup_tokens / self._tokens_per_step)
        if step < warmup_steps:
            return self.warmup_lr + (self.lr - self.warmup_lr) * (step + 1) / warmup_steps
        epoch = step // steps_per_epoch
        if self.schedule == "multistep":
            return self.lr * self.gamma ** sum(epoch >= m for m in self.milestones)
        if self.schedule_by == "epoch":
            step = epoch * steps_per_epoch
        total = self.epochs * steps_per_epoch
        # An epoch may begin within the warm-up.
        progress = max(0, step - warmup_steps) / (total - warmup_steps)
        if self.schedule == "poly":
            share = (1 - progress) ** self.power
        else:
            share = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_lr + (self.lr - self.final_lr) * share

    @property
    def _tokens_per_step(self) -> int:
        return self.batch_size * math.prod(self.input_shape)


def steps_per_epoch(samples: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches of a pass over the training set."""
    return samples // batch_size if drop_last else -(-samples // batch_size)


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
    )


def get_recipe(name: str) -> Recipe:
    """Return the recipe called `name`."""
    return RECIPES.get(name)()
