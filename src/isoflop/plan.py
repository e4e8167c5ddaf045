"""The plan: what a transform built, and how many weights each layer may keep.

A plan is plain data. It is made by a transform, printed for people, saved beside the model as
JSON, and obeyed by the sparsifier.
"""

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from isoflop.errors import PlanError
from isoflop.files import new_file, write_text
from isoflop.surgery import check_module
from isoflop.text import aligned

FORMAT_VERSION = 1

UNTRANSFORMED = "none"
"""Transform of the plan of a model that was sparsified as it was."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One weight tensor of the transformed model.

    Attributes:
        parameter: Full parameter name in the transformed model, such as ``"layer1.0.conv1.weight"``.
        source: Path of the layer in the dense model that this weight comes from.
        kind: ``"sparse"`` or ``"dense"`` (the ends of the network, low-rank factors of Doped, …).
        dense_shape: Shape of the source layer's weight.
        shape: Shape of this weight.
        nnz: Weights that may be non-zero; equals the number of weights of a dense layer.
        macs_per_weight: MACs of one forward pass of the example inputs that each weight causes. A
            fraction for the experts of a mixture, of which each sees a part of the tokens.
        source_macs: MACs that the source layer costs in the dense model.
        nominal_density: Density of this weight before the budget repairs it.
        nonlinearity: The non-linearity in what replaced the source layer, where it is another than the
            transform puts into the other layers.
    """

    parameter: str
    source: str
    kind: str
    dense_shape: tuple[int, ...]
    shape: tuple[int, ...]
    nnz: int
    macs_per_weight: int | Fraction
    source_macs: int
    nominal_density: float = 1.0
    nonlinearity: str | None = None

    @property
    def numel(self) -> int:
        """Number of weights, zeros included."""
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """MACs of one forward pass, zeros skipped."""
        return int(self.nnz * self.macs_per_weight)

    @property
    def unmasked_macs(self) -> int:
        """MACs of one forward pass if no weight were zero."""
        return int(self.numel * self.macs_per_weight)

    @property
    def density(self) -> float:
        """Fraction of weights that may be non-zero."""
        return self.nnz / self.numel

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are zero."""
        return 1.0 - self.density


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a transform built.

    Attributes:
        transform: Registered name of the transform, or `UNTRANSFORMED`.
        config: The transform's options.
        scope: ``"model"`` (the whole model meets the dense budget) or ``"layers"`` (each layer
            meets its own).
        dense_macs: MACs of one forward pass of the dense model on the example inputs.
        other_macs: MACs of the transformed model that no weight causes (attention products …).
        layers: Every weight that causes MACs, in the order in which the data reaches them.
        allocation: How the sparsity is spread over the layers.
    """

    transform: str
    config: dict[str, Any]
    scope: str
    dense_macs: int
    other_macs: int
    layers: tuple[LayerPlan, ...]
    allocation: str = "uniform"

    @property
    def is_transformed(self) -> bool:
        """Whether a transform built the model; otherwise it is sparse as it was."""
        return self.transform != UNTRANSFORMED

    @property
    def is_counted(self) -> bool:
        """Whether the MACs are known; otherwise all of them are 0."""
        return self.dense_macs > 0

    @property
    def sparse_layers(self) -> tuple[LayerPlan, ...]:
        """The layers whose weights are masked."""
        return tuple(layer for layer in self.layers if layer.kind == "sparse")

    @property
    def macs(self) -> int:
        """MACs of one forward pass of the transformed model, zeros skipped."""
        return self.other_macs + sum(layer.macs for layer in self.layers)

    @property
    def unmasked_macs(self) -> int:
        """MACs of one forward pass if no weight were zero."""
        return self.other_macs + sum(layer.unmasked_macs for layer in self.layers)

    @property
    def relative_gap(self) -> float:
        """`(macs - dense_macs) / dense_macs` of the whole model; 0 if no MACs were counted."""
        return (self.macs - self.dense_macs) / self.dense_macs if self.is_counted else 0.0

    @property
    def layer_gap(self) -> float:
        """Largest relative gap of any transformed layer to the layer that it replaces."""
        built: dict[str, int] = {}
        budget: dict[str, int] = {}
        transformed = {layer.source for layer in self.sparse_layers}
        for layer in self.layers:
            if layer.source in transformed:
                built[layer.source] = built.get(layer.source, 0) + layer.macs
                budget[layer.source] = layer.source_macs
        gaps = ((built[name] - budget[name]) / budget[name] for name in built if budget[name])
        return max(gaps, key=abs, default=0.0)

    @property
    def nnz(self) -> int:
        """Weights that may be non-zero, dense layers included."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def numel(self) -> int:
        """Weights in all, zeros included."""
        return sum(layer.numel for layer in self.layers)

    @property
    def density(self) -> float:
        """Fraction of the sparse layers' weights that may be non-zero."""
        total = sum(layer.numel for layer in self.sparse_layers)
        return sum(layer.nnz for layer in self.sparse_layers) / total if total else 1.0

    def check(self, model: nn.Module) -> None:
        """Raise `PlanError` unless every weight of the plan is in `model` with its shape."""
        check_module(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for layer in self.layers:
            if layer.parameter not in parameters:
                raise PlanError(
                    f"The plan names the weight {layer.parameter!r}, which this model lacks. Use the "
                    "plan that `isoflop.transform` returned together with this model."
                )
            shape = tuple(parameters[layer.parameter].shape)
            if shape != layer.shape:
                raise PlanError(
                    f"The plan gives {layer.parameter!r} the shape {layer.shape}, but the model has "
                    f"{shape}. Use the plan that `isoflop.transform` returned with this model."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, with its totals for readers of the file."""
        totals = {
            "macs": self.macs,
            "relative_gap": self.relative_gap,
            "layer_gap": self.layer_gap,
            "nnz": self.nnz,
            "numel": self.numel,
        }
        data = dataclasses.asdict(self)
        for layer in data["layers"]:
            if isinstance(layer["macs_per_weight"], Fraction):
                layer["macs_per_weight"] = str(layer["macs_per_weight"])  # such as "20/3"
        return {"format_version": FORMAT_VERSION, **data, "totals": totals}

    def to_json(self) -> str:
        """Return the plan as JSON; `Plan.from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        """Read back what `to_dict` returned.

        Raises:
            PlanError: The data are no plan, or one of a format that this version does not know.
        """
        if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
            raise PlanError(
                f"This is no plan of format {FORMAT_VERSION}. Write plans with `plan.save(path)` and "
                "read them with the isoflop version that wrote them."
            )
        fields = {field.name for field in dataclasses.fields(cls)} - {"layers"}
        try:
            layers = tuple(
                LayerPlan(
                    **{
                        **layer,
                        "dense_shape": tuple(layer["dense_shape"]),
                        "shape": tuple(layer["shape"]),
                        "macs_per_weight": _price(layer["macs_per_weight"]),
                    }
                )
                for layer in data["layers"]
            )
            return cls(layers=layers, **{name: data[name] for name in fields})
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"The plan is damaged: {error}. Make it anew.") from error

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read back what `to_json` returned."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"The plan is not valid JSON: {error}. Make it anew.") from error
        return cls.from_dict(data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to `path` as JSON, atomically."""
        write_text(new_file(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Read a plan that `save` wrote.

        Raises:
            PlanError: The file is missing, or holds no plan.
        """
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(
                f"The plan {path} cannot be read: {error}. Give the file that "
                "`plan.save(path)` wrote."
            ) from error
        return cls.from_json(text)

    def __str__(self) -> str:
        header = ("weight", "kind", "dense shape", "shape", "sparsity", "nnz", "MACs")
        rows = [
            (
                layer.parameter,
                layer.kind,
                "×".join(map(str, layer.dense_shape)),
                "×".join(map(str, layer.shape)),
                f"{layer.sparsity:.4f}",
                f"{layer.nnz:,}",
                f"{layer.macs:,}",
            )
            for layer in self.layers
        ]
        if self.other_macs:
            rows.append(("(no weight)", "", "", "", "", "", f"{self.other_macs:,}"))
        options = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return "\n".join(
            [
                f"{self.transform}({options}), scope={self.scope!r}, allocation={self.allocation!r}",
                *aligned([header, *rows], left=range(4)),
                f"dense MACs {self.dense_macs:,}; MACs {self.macs:,}; unmasked {self.unmasked_macs:,}",
                f"gap of the model {self.relative_gap:+.2e}; largest gap of a layer "
                f"{self.layer_gap:+.2e}; nnz {self.nnz:,} of {self.numel:,}",
                *self._nonlinearities(),
            ]
        )

    def _nonlinearities(self) -> list[str]:
        """Return a line for each non-linearity that single layers have in place of the others'."""
        sources: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.nonlinearity is not None:
                sources.setdefault(layer.nonlinearity, []).append(layer.source)
        return [
            f"{name} without BatchNorm, where the output has one position per sample or no batch: "
            f"{', '.join(dict.fromkeys(paths))}"
            for name, paths in sources.items()
        ]


def _price(value: int | str) -> int | Fraction:
    return Fraction(value) if isinstance(value, str) else value
