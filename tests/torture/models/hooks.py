"""Hooks that users have put on modules and tensors."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import torch
from tests.torture.base import SHAPE, Mlp, mlp_macs
from tests.torture.habit import habit
from torch import Tensor

HOOKS = "hook"


@habit(SHAPE, mlp_macs)
class ForwardHook(Mlp):
    """A hook that changes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.b.register_forward_hook(_double)


def _double(module, args, output):
    return 2 * output


@habit(SHAPE, mlp_macs)
class ForwardPreHook(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b.register_forward_pre_hook(_negate)


def _negate(module, args):
    return (-args[0],)


@habit(SHAPE, mlp_macs)
class HookOnRoot(Mlp):
    """A hook with keyword arguments on the whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(_scaled, with_kwargs=True)


def _scaled(module, args, kwargs):
    return tuple(0.5 * x for x in args), kwargs


@habit(SHAPE, mlp_macs)
class RecordsFeatures(Mlp):
    """As feature extractors and profilers do; a run on fakes must not leave fakes behind."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.b.register_forward_hook(self.record)

    def record(self, module, args, output):
        self.seen[:] = [output.detach()]


@habit(SHAPE, mlp_macs)
class BackwardHook(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b.register_full_backward_hook(_halve)


def _halve(module, grad_input, grad_output):
    return tuple(None if g is None else 0.5 * g for g in grad_input)


@habit(SHAPE, mlp_macs, refused={"compressed": HOOKS, "replacing": HOOKS, "low_rank": HOOKS})
class GradientHook(Mlp):
    """A smaller learning rate for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.b.weight.register_hook(_tenth)


def _tenth(grad):
    return 0.1 * grad


@habit(SHAPE, mlp_macs, refused={"widening": HOOKS})
class GradientHookOfModule(Mlp):
    """A method of the model changes the gradients of a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 0.5
        self.b.bias.register_hook(self.slowed)

    def slowed(self, grad):
        return self.factor * grad


@habit(SHAPE, mlp_macs, refused={"export": "exported"})
class MarkedParameters(Mlp):
    """Attributes of parameters sort them into groups, and the forward pass reads one."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.no_weight_decay = parameter.ndim < 2

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x) if self.a.bias.no_weight_decay else x


@habit(SHAPE, mlp_macs)
class HookOnActivation(Mlp):
    """Gradients of an activation are clipped on their way back."""

    def middle(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(_clipped)
        return self.b(x)


def _clipped(grad):
    return torch.clamp(grad, -0.01, 0.01)
