"""Where a model comes from, so that it can be built again."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError, ModelFileError, RunDirectoryError
from isoflop.files import read_json
from isoflop.kernels.candidates import sparse_layer
from isoflop.masks import SUFFIX
from isoflop.models.specs import build_model, default_example_shape, example_inputs
from isoflop.plan import Plan
from isoflop.surgery import replace_modules
from isoflop.training.checkpoint import load_checkpoint
from isoflop.training.rundir import RunDirectory
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
        input_shape: Shape of one sample; None leaves the model's own.
    """

    spec: str
    num_classes: int | None = None
    in_channels: int | None = None
    base_width: int | None = None
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

    Args:
        path: A run directory, which `isoflop train` wrote.

    Raises:
        RunDirectoryError: There is no run, or it has no checkpoint yet, or a damaged one.
    """
    run = RunDirectory(path)
    config = read_json(run.config_path)
    state = load_checkpoint(run.path)
    if state is None:
        raise RunDirectoryError(f"{path} has no checkpoint yet. Train for at least an epoch.")
    plan = Plan.load(run.plan_path) if run.plan_path.exists() else None
    try:
        recipe = config["recipe"]
        shape = tuple(recipe["input_shape"])
        source = ModelSource(
            spec=recipe["model"],
            num_classes=recipe["num_classes"],
            in_channels=None if shape[0] == 3 else shape[0],
            base_width=recipe["base_width"],
            input_shape=shape,
        )
        weights = state["model"]
        transformed = config["transform"] is not None
    except (KeyError, TypeError, IndexError) as error:
        raise RunDirectoryError(f"{path} is no run of this version: {error!r}.") from error
    model = source.build(plan if transformed else None)
    model = _with_storage_of(weights, model)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunDirectoryError(f"The checkpoint in {path} is of another model: {error}") from error
    return model, plan if transformed else None, source


def _with_storage_of(state: dict[str, Any], model: nn.Module) -> nn.Module:
    """Give `model` the masks and the compressed layers that a state dict has."""
    modules = dict(model.named_modules())
    new: dict[nn.Module, nn.Module] = {}
    for name, tensor in state.items():
        path, _, attribute = name.rpartition(".")
        module = modules.get(path)
        if module is None:
            continue
        if attribute.endswith(SUFFIX) and attribute.removesuffix(SUFFIX) in module._parameters:
            module.register_buffer(attribute, torch.empty_like(tensor))
        elif attribute == "tiling":
            sparse = sparse_layer(module, torch.zeros_like(module.get_parameter("weight")).bool())
            if sparse is None:
                raise IsoflopError(f"{path!r} cannot be compressed, but the checkpoint has it so.")
            new[module] = sparse
    return replace_modules(model, new)
