"""Where a model comes from, so that it can be built again."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isoflop.errors import IsoflopError, ModelFileError, UnknownNameError
from isoflop.model_specs import (
    build_model,
    default_example_shape,
    example_inputs,
)
from isoflop.plan import UNTRANSFORMED, Plan
from isoflop.transforms import find_transform, transform

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
        backbone: The classifier whose layers the model begins with; None if these are its own.
    """

    spec: str
    num_classes: int | None = None
    in_channels: int | None = None
    base_width: int | None = None
    vocab_size: int | None = None
    context: int | None = None
    input_shape: tuple[int, ...] | None = None
    backbone: "BackboneSource | None" = None

    @classmethod
    def from_dict(cls, data: Any) -> "ModelSource":
        """Read back what `to_dict` returned."""
        shape, backbone = data["input_shape"], data.get("backbone")
        return cls(
            **{
                **data,
                "input_shape": None if shape is None else tuple(shape),
                "backbone": None if backbone is None else BackboneSource.from_dict(backbone),
            }
        )

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
            # A backbone has channels of its own.
            in_channels=self.in_channels if self.backbone is None else None,
            base_width=self.base_width,
            vocab_size=self.vocab_size,
            context=self.context,
            backbone=None if self.backbone is None else self.backbone.build(),
        )
        if plan is None:
            return model
        # Without a transform, `sparsify` makes a plan of the model as it is.
        if plan.transform != UNTRANSFORMED:
            model = self.transformed(model, plan.transform, plan.config, plan.scope)
        plan.check(model)
        return model

    def transformed(
        self, model: nn.Module, name: str, options: dict[str, Any], scope: Any
    ) -> nn.Module:
        """Return a model transformed, freshly initialised.

        Args:
            model: The dense model, built as this says.
            name: Registered name of the transform.
            options: Its options.
            scope: Whether the model or each of its layers meets the FLOP budget.
        """
        try:
            config = find_transform(name, **options)
        except UnknownNameError:
            raise
        except IsoflopError as error:
            raise ModelFileError(f"The plan's transform has other options here: {error}") from error
        return transform(model, config, example_inputs=self.example_inputs(model), scope=scope)[0]

    @property
    def specs(self) -> list[str]:
        """The specs of the model and of its backbone."""
        return [self.spec] if self.backbone is None else [self.spec, *self.backbone.source.specs]


@dataclass(frozen=True, kw_only=True)
class BackboneSource:
    """How a classifier was built whose layers begin another model.

    Attributes:
        source: The dense classifier.
        transform: Registered name of the transform; None if there was none.
        config: Its options.
        scope: Whether the model or each of its layers meets the FLOP budget.
    """

    source: ModelSource
    transform: str | None
    config: dict[str, Any] | None
    scope: str

    @classmethod
    def from_dict(cls, data: Any) -> "BackboneSource":
        """Read back what `dataclasses.asdict` returned."""
        return cls(**{**data, "source": ModelSource.from_dict(data["source"])})

    def build(self) -> nn.Module:
        """Return the classifier, freshly initialised."""
        model = self.source.build(None)
        if self.transform is None:
            return model
        return self.source.transformed(model, self.transform, self.config or {}, self.scope)
