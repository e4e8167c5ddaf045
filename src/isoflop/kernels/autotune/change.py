"""What was chosen for the layers of a model, as a change that can be undone."""

import itertools
from collections.abc import Mapping, Sequence

from torch import nn

from isoflop.kernels.autotune.calls import Call
from isoflop.kernels.autotune.choices import LayerChoice, layout_of
from isoflop.kernels.autotune.contestants import Mode
from isoflop.kernels.cpu.conv2d import SparseConv2d
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.kernels.cpu.layout import (
    LayoutConv2d,
    layout_modules,
    out_of_place_modules,
)
from isoflop.kernels.semi_structured import Packing, disable, enable
from isoflop.surgery import replace_modules


class Change:
    """The choices as a change of the model that can be undone. It is made at once.

    Args:
        model: The model.
        calls: Its calls of convolutions and contestants, in order.
        contestants: What each layer can be, by path.
        layers: What was chosen, by path.
        mode: What the choices are for.
        kind: The 2:4 format of a GPU, or None on a CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[Call],
        contestants: Mapping[str, dict[str, nn.Module]],
        layers: Mapping[str, LayerChoice],
        mode: Mode,
        kind: Packing | None,
    ) -> None:
        self._holder = nn.ModuleList([model])
        self._stages: list[dict[nn.Module, nn.Module]] = []
        self._backends: dict[SparseLayer, tuple[str, str]] = {}
        self._kind = kind
        self._packed: list[nn.Module] = []
        modules = {call.path: call.module for call in calls}
        for path, layer in layers.items():
            module = modules[path]
            # In training the same module, as sparsifiers and optimizers hold on to it.
            if mode == "training" and isinstance(module, SparseLayer):
                self._backends[module] = module.backend, layer.chosen
            elif mode == "training" and layer.chosen == "sparse":
                self._packed.append(module)
        if mode == "inference":
            self._stage({modules[p]: contestants[p][c.chosen] for p, c in layers.items()})
        convs = [call for call in calls if call.is_conv]
        chosen = {
            c.path: layout_of(layers[c.path].chosen) if c.path in layers else "dense" for c in convs
        }
        if "sparse" in chosen.values():
            self._stage(layout_modules(self._holder))
            if mode == "training":
                self._stage(out_of_place_modules(self._holder))
            for call, following in itertools.pairwise(convs):
                if (chosen[call.path], chosen[following.path]) == ("dense", "sparse"):
                    for module in self.model.get_submodule(call.path).modules():
                        if isinstance(module, (LayoutConv2d, SparseConv2d)):
                            module.batch_innermost = True
        self.apply()

    @property
    def model(self) -> nn.Module:
        """The model, as it is now."""
        return self._holder[0]

    def apply(self) -> None:
        """Put the choices in place."""
        for stage in self._stages:
            replace_modules(self._holder, stage)
            for old, new in stage.items():
                new.training = old.training
        for layer, (_, chosen) in self._backends.items():
            layer.backend = chosen
        for layer in self._packed:
            assert self._kind is not None
            enable(layer, self._kind)

    def undo(self) -> None:
        """Put everything back."""
        for stage in reversed(self._stages):
            replace_modules(self._holder, {new: old for old, new in stage.items()})
        for layer, (before, _) in self._backends.items():
            layer.backend = before
        for layer in self._packed:
            disable(layer)

    def _stage(self, new: dict[nn.Module, nn.Module]) -> None:
        new = {old: module for old, module in new.items() if old is not module}
        replace_modules(self._holder, new)
        self._stages.append(new)
