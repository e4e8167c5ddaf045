"""Where a model comes from, so that it can be built again."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from isoflop.errors import ModelFileError
from isoflop.files import read_json
from isoflop.models.specs import (
    build_model,
    default_example_shape,
    example_inputs,
    takes_tokens,
)
from isoflop.plan import Plan
from isoflop.transforms import TRANSFORMS, transform

LIBRARIES = ("timm", "torchvision", "isoflop", "hf")
"""What a file may name as the source of its model. A function of any module might do anything."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """How a dense model was built.

    Attributes:
        spec: `timm:NAME`, `torchvision:NAME`, `isoflop:NAME`, `hf:NAME`, or
            `package.module:function`.
        num_classes: Outputs of the classifier; None leaves the model's own default.
        in_channels: Channels of the images; likewise.
        base_width: Channels of the first stage; likewise.
        vocab_size: Number of different tokens of a language model; likewise.
        context: Longest sequence of a language model; likewise.
        input_shape: Shape of one sample; None leaves the model's own.
    """

    spec: str
    num_classes: int | None = None
    in_channels: int | None = None
    base_width: int | None = None
    vocab_size: int | None = None
    context: int | None = None
    input_shape: tuple[int, ...] | None = None

    @classmethod
    def from_dict(cls, data: Any) -> "ModelSource":
        """Read back what `to_dict` returned."""
        shape = data["input_shape"]
        return cls(**{**data, "input_shape": None if shape is None else tuple(shape)})

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)

    def example_inputs(self, model: nn.Module | None = None, *, batch: int = 1) -> Tensor:
        """Return zeros that the model takes.

        Args:
            model: The model, where it has been built already; it may say its input size itself.
            batch: Number of samples.

        Raises:
            IsoflopError: The shape of a sample is not known.
        """
        sample = self.input_shape
        if sample is None:
            sample = default_example_shape(self.spec, model)[1:]
        return example_inputs(self.spec, (batch, *sample))

    def build(self, plan: Plan | None) -> nn.Module:
        """Return the model, freshly initialised, with the transform of the plan applied.

        Raises:
            IsoflopError: It cannot be built, or not such that the plan describes it.
        """
        model = build_model(
            self.spec,
            self.num_classes,
            in_channels=self.in_channels,
            base_width=self.base_width,
            vocab_size=self.vocab_size,
            context=self.context,
        )
        if plan is None:
            return model
        kind: Any = TRANSFORMS.get(plan.transform)
        try:
            config = kind(**plan.config)
        except TypeError as error:
            raise ModelFileError(
                f"The plan's transform has other options here: {error}."
            ) from error
        scope: Any = plan.scope
        inputs = self.example_inputs(model)
        model, _ = transform(model, config, example_inputs=inputs, scope=scope)
        plan.check(model)
        return model


def load_run(path: str | Path) -> tuple[nn.Module, Plan | None, ModelSource]:
    """Return the model that a run has trained so far, its plan, and how it was built.

    Sparse layers of a run with compressed storage come back as dense ones with masks.

    Args:
        path: A run directory, which `isoflop train` wrote.

    Raises:
        RunDirectoryError: There is no run, or it has no checkpoint yet, or a damaged one.
    """
    # Only runs need the code for training, which takes long to import.
    from isoflop.training.restore import restore
    from isoflop.training.rundir import RunDirectory

    run = RunDirectory(path)
    config = read_json(run.config_path)
    model = restore(run.path).model
    recipe = config["recipe"]
    shape = tuple(recipe["input_shape"])
    sizes: dict[str, Any] = {"base_width": recipe["base_width"], "input_shape": shape}
    if takes_tokens(recipe["model"]):
        sizes |= {"vocab_size": recipe["num_classes"], "context": shape[0]}
    else:
        channels = None if shape[0] == 3 else shape[0]
        sizes |= {"num_classes": recipe["num_classes"], "in_channels": channels}
    source = ModelSource(spec=recipe["model"], **sizes)
    planned = config["transform"] is not None and run.plan_path.exists()
    return model, Plan.load(run.plan_path) if planned else None, source
