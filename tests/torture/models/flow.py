"""Control flow, randomness, autograd, and code that PyTorch does not see into."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import contextlib
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from tests.torture.base import SHAPE, Mlp, mlp_macs
from tests.torture.habit import habit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

VALUES = "register_widening_rule|values"
"""Refusals of what needs the values of tensors."""


@habit(
    SHAPE,
    mlp_macs,
    refused={"profile": VALUES, "transform": VALUES, "export": "exported"},
)
class ByValue(Mlp):
    """The sign of a sum decides which activation follows."""

    def middle(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return y.tanh() if x.sum() > 8 else y.sin()


@habit(
    SHAPE,
    mlp_macs,
    refused={
        "profile": VALUES,
        "transform": VALUES,
    },
)
class ReadsItem(Mlp):
    """A limit that is read as a Python number."""

    def middle(self, x: Tensor) -> Tensor:
        limit = x.abs().max().item()
        return self.b(x / limit)


@habit(SHAPE, mlp_macs, refused={"profile": VALUES, "transform": VALUES, "export": "exported"})
class ChecksForNan(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        if torch.isnan(x).any():
            raise ValueError("NaN")
        return self.b(x)


@habit(SHAPE, mlp_macs, refused={"profile": VALUES, "transform": VALUES, "export": "exported"})
class ThroughNumpy(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        scale = float(x.detach().numpy().std())
        return self.b(x) * scale


@habit(
    lambda: (torch.randn(SHAPE), torch.tensor(2)),
    lambda w: 4 * w("a", "c") + 8 * w("b"),
    refused={"export": "exported"},
)
class LoopByInput(Mlp):
    """An input says how often a block runs."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        for _ in range(int(times)):
            x = F.relu(self.b(x))
        return self.c(x)


@habit(SHAPE, mlp_macs, refused={"profile": VALUES, "transform": VALUES, "export": "exported"})
class EarlyExit(Mlp):
    """What is sure already skips the last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.exit = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        early = self.exit(x)
        if not self.training and early.softmax(1).amax(1).min() > 0.24:
            return early
        return early + self.c(F.relu(self.b(x)))


@habit(SHAPE, mlp_macs)
class ByTraining(Mlp):
    """An auxiliary head that training alone runs."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        y = self.c(F.relu(self.b(x)))
        return (y, self.auxiliary(x)) if self.training else y


@habit(SHAPE, mlp_macs)
class ByShape(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return y.tanh() if len(x) > 2 else y.sin()


@habit(SHAPE, mlp_macs)
class StochasticDepth(Mlp):
    """A branch that is left out at random, by Python's numbers and by PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 5)

    def middle(self, x: Tensor) -> Tensor:
        if not self.training:
            return x + 0.8 * self.b(x)
        keep = torch.rand(len(x), 1) < 0.8
        return x + keep * self.b(x) if torch.rand(()) < 0.8 else x


@habit(SHAPE, mlp_macs)
class FunctionalDropout(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        return F.dropout(self.b(x), p=0.1, training=self.training)


@habit(SHAPE, mlp_macs)
class CheckpointReentrant(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return checkpoint(self.b, x, use_reentrant=True)


@habit(SHAPE, mlp_macs)
class Checkpoint(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        return checkpoint(self.b, x, use_reentrant=False)


class Reversed(torch.autograd.Function):
    """Gradients change their sign on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


@habit(SHAPE, mlp_macs)
class ReversesGradients(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        return self.b(Reversed.apply(x))


class Product(torch.autograd.Function):
    """A linear layer with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.t() @ x


@habit(SHAPE, mlp_macs)
class OwnProduct(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.b.weight) + self.b.bias


@torch.library.custom_op("torture::softsign", mutates_args=())
def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


@softsign.register_fake
def _(x):
    return torch.empty_like(x)


softsign.register_autograd(
    lambda ctx, grad: grad / (1 + ctx.saved_tensors[0].abs()) ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@habit(SHAPE, mlp_macs, warns={"profile": "softsign"}, refused={"transform": "softsign"})
class CustomOperator(Mlp):
    """What it costs is not known."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.ops.torture.softsign(self.b(x))


@torch.library.custom_op("torture::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    return x * 2


opaque.register_autograd(lambda ctx, grad: grad * 2)


@habit(
    SHAPE,
    mlp_macs,
    refused={"profile": "opaque", "transform": "opaque", "export": "opaque"},
)
class CustomOperatorWithoutFake(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        return torch.ops.torture.opaque(self.b(x))


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


@habit(
    SHAPE,
    lambda w: 4 * w("a", "b.layer", "c"),
    refused=dict.fromkeys(("profile", "transform"), "'b'.* TorchScript")
    | dict.fromkeys(("masked", "compressed", "inference", "export"), "'b'.* torch.jit"),
)
class ScriptedPart(Mlp):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.b = torch.jit.script(Scripted())


@habit(SHAPE, mlp_macs, rounding=0.02)
class AutocastInside(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.b(x).float()


@habit(SHAPE, mlp_macs, exclude="a")
class NoGradientPart(Mlp):
    """The first layer is a feature extractor that does not train."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.a(x))
        return self.c(F.relu(self.b(x)))


@habit(
    SHAPE,
    lambda w: 4 * w("a", "b", "c") + 4 * w("a", "b", "c"),
    scales=False,
    refused={"export": "exported"},
)
class Forces(Mlp):
    """The output is a gradient: of an energy by the places of atoms, and training differentiates it.

    The gradient of the input costs as much as the forward pass.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.c(self.b(self.a(x).tanh()).tanh()).mean(1)
            (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return (energy, force) if self.training else (energy.detach(), force.detach())


@habit((2, 3, 4, 4), lambda w: 64 * w("a", "b") + 2 * 2 * w("c"), refused={"export": "exported"})
class GradientOfImage(nn.Module):
    """As `Forces`, of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.c = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.c(self.b(self.a(x).tanh()).tanh().mean((2, 3)))
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return (energy, slope) if self.training else (energy.detach(), slope.detach())


@habit(
    SHAPE,
    lambda w: 4 * (w("a") + 3 * w("b", "c")),
    refused={"export": "exported"},
)
class Corrected(Mlp):
    """A step down the gradient of what comes after corrects an activation."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            hidden = self.a(x).tanh()
            hidden = hidden if hidden.requires_grad else hidden.requires_grad_()
            energy = self.c(self.b(hidden).tanh()).square().sum()
            (slope,) = torch.autograd.grad(energy, [hidden], create_graph=self.training)
        y = self.c(self.b(hidden - 0.1 * slope).tanh())
        return y if self.training else y.detach()


def penalised(output: Any) -> Tensor:
    (grad,) = torch.autograd.grad(output.sum(), output.grad_input, create_graph=True)
    return output.square().mean() + (grad.norm(2, 1) - 1).square().mean()


@habit(SHAPE, mlp_macs, loss=penalised)
class GradientPenalty(Mlp):
    """The loss differentiates the output by the input, and is differentiated again."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and x.is_leaf:
            x = x.requires_grad_()
        y = self.c(self.b(self.a(x).tanh()).tanh())
        y.grad_input = x
        return y


class Expert(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.router, self.c = nn.Linear(12, 16), nn.Linear(16, 3), nn.Linear(16, 5)
        self.experts = nn.ModuleList(Expert() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.c(x + self.mixed(x, self.router(x).softmax(1)))

    def mixed(self, x: Tensor, gates: Tensor) -> Tensor:
        raise NotImplementedError


EXPERTS = [f"experts.{i}.{j}" for i in range(3) for j in (0, 2)]


@habit(SHAPE, lambda w: 4 * w("a", "router", "c", *EXPERTS))
class SoftMixture(Mixture):
    def mixed(self, x: Tensor, gates: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return (gates.unsqueeze(2) * outputs).sum(1)


@habit(
    SHAPE,
    lambda w: 0,
    refused={"profile": VALUES, "transform": VALUES, "export": "exported"},
)
class RoutedMixture(Mixture):
    """Each row goes to the expert that it asks for; an expert that none asks for does not run."""

    def mixed(self, x: Tensor, gates: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        chosen = gates.argmax(1)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().flatten()
            if len(rows):
                y = y.index_add(0, rows, gates[rows, index, None] * expert(x[rows]))
        return y


@habit(SHAPE, mlp_macs)
class AsksForTracing(Mlp):
    """Another course for compilers."""

    def middle(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return F.linear(x, self.b.weight, self.b.bias)
        return self.b(x)


@habit(SHAPE, mlp_macs, refused={"export": "exported"})
class CatchesErrors(Mlp):
    """A fallback where something fails: no error may be taken for one of the model's."""

    def middle(self, x: Tensor) -> Tensor:
        with contextlib.suppress(RuntimeError):
            return self.b(x[:, :-1])
        return self.b(x)


@habit(SHAPE, mlp_macs)
class UsesNumbersOfItsOwn(Mlp):
    """Draws random numbers in evaluation too."""

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x + 0.1 * torch.randn_like(x))
