"""What every transform is: a frozen dataclass of options that builds a bigger, sparse model."""

import dataclasses
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from isoflop.errors import IsoflopError
from isoflop.flops.copies import copy_with_tensors
from isoflop.flops.replaced import check_replaced
from isoflop.flops.trace import Trace
from isoflop.registry import Registry, known_name, names_in
from isoflop.surgery import ExampleInputs, replace_modules
from isoflop.transforms.attention import forbid_fast_path, separate_attention
from isoflop.transforms.buffers import resized
from isoflop.transforms.layers import LayerShape, is_replaceable, unflipped
from isoflop.transforms.nonlinearity import NONLINEARITIES
from isoflop.transforms.positions import without_norm
from isoflop.transforms.replacement import ReplacedLayer
from isoflop.transforms.usage import owner_counts, weight_users
from isoflop.widths import check_unnamed, check_widened, solve_widths, widen

TRANSFORMS: Registry[type["Transform"]] = Registry("transform", "isoflop.transforms")


@dataclass(frozen=True)
class WeightSpec:
    """How one weight of the transformed model is to be treated.

    Attributes:
        source: Path of the dense layer that it comes from.
        kind: ``"sparse"`` or ``"dense"``.
        density: Nominal density of a sparse weight.
        gain: Gain of its initialisation.
        nonlinearity: Name of σ, where it is another than elsewhere in the model.
    """

    source: str
    kind: Literal["sparse", "dense"]
    density: float = 1.0
    gain: float = math.sqrt(2.0)
    nonlinearity: str | None = None


@dataclass(frozen=True)
class Source:
    """The dense model and what is known of it.

    Attributes:
        model: The dense model as `Transform.prepared` returned it, not to be changed.
        example_inputs: Inputs that it takes.
        trace: What one forward pass showed.
        weights: The weights that may become sparse, by full name, in the order of execution.
        layers: The layers that may be replaced by others, by path.
        excluded: Paths of the excluded modules.
    """

    model: nn.Module
    example_inputs: ExampleInputs
    trace: Trace
    weights: tuple[str, ...]
    layers: dict[str, nn.Module]
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Transform:
    """Base of the transforms.

    Attributes:
        sparsity: Fraction of zeros in [0, 1), the one hyperparameter of the paper; it sets the
            sizes.
        exclude: Patterns (`fnmatch`) of module paths to leave dense, or one pattern.
        dense_ends: Keep the first and the last layer dense, as the paper does (appendix A.2).
        init: ``"active_fan"`` draws weights with the variance that fits the connections that are
            left; ``"dense_fan"`` with that which fits a dense layer of the same size, as the paper
            does.
    """

    leaves_out: ClassVar[str] = ""
    """What kinds of layer this transform leaves as they are, as a phrase with a comma before it."""

    sparsity: float
    exclude: tuple[str, ...] = field(default=(), kw_only=True)
    dense_ends: bool = field(default=True, kw_only=True)
    init: Literal["active_fan", "dense_fan"] = field(default="active_fan", kw_only=True)

    def __post_init__(self) -> None:
        valid = isinstance(self.sparsity, (int, float)) and not isinstance(self.sparsity, bool)
        if not valid or not 0.0 <= self.sparsity < 1.0:
            raise IsoflopError(
                f"sparsity must be a number in [0, 1), not {self.sparsity!r}: 0.75 means that three "
                "weights in four are zero."
            )
        object.__setattr__(self, "init", known_name(self.init, ("active_fan", "dense_fan"), "init"))
        object.__setattr__(self, "exclude", names_in(self.exclude, "exclude"))

    def prepared(self, model: nn.Module, trace: Trace, keep: Collection[str]) -> nn.Module:
        """Return an equivalent of the dense model, of the same FLOPs, that suits this transform.

        Args:
            model: The dense model, not to be changed.
            trace: What one forward pass of it showed.
            keep: Paths of excluded modules, to leave as they are.
        """
        return model

    def applies(self, source: Source) -> bool:
        """Tell whether there is anything in the model to transform."""
        return bool(source.weights)

    def build(self, source: Source) -> tuple[nn.Module, dict[str, WeightSpec]]:
        """Return the transformed model, uninitialised, and how to treat each of its weights."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain data."""
        data = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in data.items()}


@dataclass(frozen=True)
class LayerTransform(Transform):
    """Base of the transforms that replace layers one by one, sizes of their ends unchanged.

    Linear layers and convolutions are replaced, transposed ones too, and the projections of
    multi-head attention; depthwise convolutions are left as they are (paper, appendix A.1.1). So
    are layers whose weight is tied to another module's, or used outside its own layer.

    Attributes:
        nonlinearity: Name of σ in `isoflop.transforms.NONLINEARITIES`. ``"auto"`` is ReLU alone where
            a convolution has one position per sample, as in squeeze-and-excitation: BatchNorm would
            fail on a single sample there, and divide by the noise of a few; and where its input has no
            batch. The plan names these.
    """

    leaves_out: ClassVar[str] = ", depthwise convolutions"

    nonlinearity: str = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        NONLINEARITIES.get(self.nonlinearity)

    def prepared(self, model: nn.Module, trace: Trace, keep: Collection[str]) -> nn.Module:
        """Take multi-head attention apart, so that its projections are layers."""
        return separate_attention(model, trace, keep)

    def applies(self, source: Source) -> bool:
        """Tell whether there is a layer to replace."""
        return not all(LayerShape.of(layer).depthwise for layer in source.layers.values())

    def replacement(self, layer: nn.Module, shape: LayerShape) -> ReplacedLayer:
        """Return the uninitialised module that takes the place of `layer`.

        Args:
            layer: The layer in the (perhaps resized) copy of the model, `unflipped`.
            shape: The shape of the layer in the dense model.
        """
        raise NotImplementedError

    def weight_specs(self, path: str, layer: nn.Module, shape: LayerShape) -> dict[str, WeightSpec]:
        """Return how to treat the weights of the replacement of the layer at `path`."""
        raise NotImplementedError

    def resized(self, source: Source) -> nn.Module:
        """Return the copy of the dense model whose layers are replaced."""
        return copy_with_tensors(source.model, lambda *args: args[-1].detach().clone())

    def build(self, source: Source) -> tuple[nn.Module, dict[str, WeightSpec]]:
        """Replace every layer that may be replaced."""
        model = self.resized(source)
        modules = dict(model.named_modules())
        new: dict[nn.Module, nn.Module] = {}
        replaced: dict[str, tuple[nn.Module, nn.Module]] = {}
        specs: dict[str, WeightSpec] = {}
        plain: set[str] = set()
        if self.nonlinearity == "auto":
            plain = without_norm(source.model, source.example_inputs, source.layers)
        for path, dense in source.layers.items():
            shape = LayerShape.of(dense)
            if shape.depthwise:
                continue
            layer = modules[path]
            other = "relu" if path in plain else None
            config = self if other is None else dataclasses.replace(self, nonlinearity=other)
            new[layer] = replacement = config.replacement(unflipped(layer), shape)
            replacement.keep_attributes(layer)
            replaced[path] = (layer, replacement)
            specs |= {
                f"{path}.{name}" if path else name: dataclasses.replace(spec, nonlinearity=other)
                for name, spec in self.weight_specs(path, dense, shape).items()
            }
        model = replace_modules(model, new)
        forbid_fast_path(model)
        check_replaced(model, source.example_inputs, replaced)
        return model, specs


def widened(source: Source, factor: float, *, multiple_of: int = 1) -> nn.Module:
    """Return the dense model with its widths times `factor`, checked to be widened throughout."""
    widths = solve_widths(
        source.model, factor, source.example_inputs, multiple_of=multiple_of, content=resized
    )
    model = widen(source.model, widths)
    check_widened(source.model, model, widths, source.trace, source.excluded)
    check_unnamed(model, widths, source.example_inputs)
    return model


def replaceable_layers(
    model: nn.Module, trace: Trace, weights: Iterable[str]
) -> dict[str, nn.Module]:
    """Return the layers whose one weight is used by their own forward pass and nowhere else."""
    users, owners = weight_users(trace), owner_counts(model)
    modules = dict(model.named_modules())
    layers = {}
    for name in weights:
        path, _, attribute = name.rpartition(".")
        module = modules.get(path)
        if (
            module is not None
            and attribute == "weight"
            and is_replaceable(module)
            and users[name] == {path}
            and owners[id(module._parameters[attribute])] == 1
        ):
            layers[path] = module
    return layers
