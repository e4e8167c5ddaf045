"""What every contestant of a benchmark has to do: a forward pass, or one with its backward pass."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from isoflop.kernels import SparseLayer
from isoflop.masks import apply_masks, get_mask, named_masks


class Work(ABC):
    """The work on one batch by one model; calling it does it once.

    Args:
        model: The model that does it.
        inputs: The batch, in the memory layout that the model is to get.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self.model = model
        self.inputs = inputs

    @abstractmethod
    def __call__(self) -> Tensor:
        """Do the work once and return the output, or the loss."""

    @abstractmethod
    def results(self) -> dict[str, Tensor]:
        """Do the work and return everything that it has to get right."""


class Forward(Work):
    """A forward pass without autograd."""

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Return the output."""
        return first_tensor(self.model(self.inputs))

    def results(self) -> dict[str, Tensor]:
        """Return the output."""
        return {"output": self()}


class ForwardBackward(Work):
    """A forward pass, and the gradients of input and parameters for the gradient `grad`.

    The gradient is given in the memory layout of the output, as a following layer would give it.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, grad: Tensor) -> None:
        super().__init__(model, inputs.detach().requires_grad_())
        with torch.no_grad():
            output = first_tensor(model(inputs))
        self.grad = torch.empty_like(output).copy_(grad)

    def __call__(self) -> Tensor:
        """Do both passes and return the output."""
        self.inputs.grad = None
        self.model.zero_grad()
        output = first_tensor(self.model(self.inputs))
        output.backward(self.grad)
        return output.detach()

    def results(self) -> dict[str, Tensor]:
        """Return output and gradients."""
        output = self()
        assert self.inputs.grad is not None
        return {"output": output, "input gradient": self.inputs.grad, **gradients(self.model)}


class TrainingStep(Work):
    """Forward pass, cross entropy, backward pass and optimizer step.

    Where the model has masks, its weights are masked after each step.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        optimizer: Callable[[Any], Optimizer],
    ) -> None:
        super().__init__(model, inputs)
        self.targets = targets
        self.optimizer = optimizer(model.parameters())
        self.masked = any(True for _ in named_masks(model))

    def __call__(self) -> Tensor:
        """Do a step and return the loss before it."""
        self.optimizer.zero_grad()
        logits = first_tensor(self.model(self.inputs))
        loss = F.cross_entropy(logits.flatten(0, -2), self.targets.flatten())
        loss.backward()
        self.optimizer.step()
        if self.masked:
            apply_masks(self.model)
        return loss.detach()

    def results(self) -> dict[str, Tensor]:
        """Return the loss, the gradients, and how much the step changed the loss."""
        loss = self()
        found = gradients(self.model)
        return {"loss": loss, "change of the loss": self() - loss, **found}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients by parameter, those of sparse weights dense, and zero off the mask."""
    return {f"gradient of {name}": gradient.clone() for name, gradient in _gradients(model)}


def _gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            gradient = None if parameter is None else parameter.grad
            if gradient is None:
                continue
            if isinstance(module, SparseLayer) and name == "values":
                dense = module.index.to_dense(gradient)
                dense = dense.flatten(1) if module.dense_weight().ndim == 2 else dense
                yield f"{prefix}weight", dense.t() if module.fan_in_fan_out else dense
                continue
            if gradient.layout != torch.strided:
                gradient = gradient.to_dense()
            mask = get_mask(module, name)
            yield prefix + name, gradient if mask is None else gradient * mask


def first_tensor(output: Any) -> Tensor:
    """Return a model's output, of transformers' outputs the logits."""
    return output if isinstance(output, Tensor) else output.logits
