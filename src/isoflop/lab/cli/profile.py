"""The command `isoflop profile`."""

from dataclasses import dataclass
from typing import Literal

import tyro

from isoflop.errors import IsoflopError
from isoflop.lab.cli.output import print_json, shape_of


@dataclass(kw_only=True)
class Profile:
    """Count the exact MACs of a model, or plan a transform of it. Nothing is trained."""

    model: tyro.conf.Positional[str]
    """`timm:NAME`, `torchvision:NAME`, `isoflop:NAME`, `hf:NAME` or `package.module:function`."""
    transform: str | None = None
    """Transform to plan, such as `wide`; see `isoflop list`."""
    sparsity: float | None = None
    """Sparsity of the transform, in [0, 1)."""
    width: float | None = None
    """Width factor, for the transforms that have one (`low_rank`)."""
    scope: Literal["model", "layers"] = "model"
    """Whether the whole model meets the FLOP budget, or each layer its own."""
    input: str | None = None
    """Shape of the example input, such as `1,3,224,224`; by default the model's own."""
    num_classes: int | None = None
    """Outputs of the classifier; by default the model's own."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print the table of costs, or the plan."""
        from isoflop.flops.trace import profile
        from isoflop.lab.training.configs import build_transform
        from isoflop.model_specs import build_model, default_example_shape, example_inputs
        from isoflop.transforms import transform

        config = None
        if self.transform is not None:
            config = build_transform(self.transform, sparsity=self.sparsity, width=self.width)
        elif self.sparsity is not None or self.width is not None:
            raise IsoflopError(
                "--sparsity and --width need a --transform, such as --transform wide."
            )
        model = build_model(self.model, self.num_classes, meta=True)
        shape = shape_of(self.input) if self.input else default_example_shape(self.model, model)
        inputs = example_inputs(self.model, shape, meta=True)
        if config is None:
            result = profile(model, inputs)
        else:
            _, result = transform(model, config, example_inputs=inputs, scope=self.scope)
        if self.json:
            print_json(result.to_dict())
        else:
            print(result)
