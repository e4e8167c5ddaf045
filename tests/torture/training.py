"""Training, by isoflop and by plain PyTorch."""

import math

import torch
from tests.torture.checks import attempt
from tests.torture.habit import Habit
from torch import Tensor, nn

import isoflop

TOTAL_STEPS = 8
UPDATE_EVERY = 2
METHOD = isoflop.RigL(update_every=UPDATE_EVERY, end_fraction=1.0, alpha=0.5)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer of all that trains."""
    trained = [p for p in model.parameters() if p.requires_grad] or [nn.Parameter(torch.zeros(()))]
    return torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=1e-3)


def sparsified(
    habit: Habit, storage: str
) -> tuple[nn.Module, torch.optim.Optimizer, isoflop.Sparsifier] | None:
    """Return a sparsified model with its optimizer and sparsifier; None if that is refused."""
    model = habit.build()
    optimizer = make_optimizer(model)
    sparsifier = attempt(
        habit,
        storage,
        lambda: isoflop.sparsify(
            model,
            optimizer,
            METHOD,
            isoflop.plain_plan(model, 0.5, dense_ends=False, exclude=habit.exclude),
            total_steps=TOTAL_STEPS,
            storage=storage,  # pyright: ignore[reportArgumentType]
        ),
        model,
        optimizer,
        changes=True,
    )
    return None if sparsifier is None else (model, optimizer, sparsifier)


def train(
    habit: Habit, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range
) -> list[float]:
    """Take steps, each on a batch of its own, and return the losses."""
    losses = []
    model.train()
    for step in steps:
        optimizer.zero_grad()
        loss = habit.loss(habit.run(model, step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_plainly(
    habit: Habit, masks: dict[str, Tensor], steps: range
) -> tuple[nn.Module, list[float]]:
    """Train with masks by PyTorch alone, and return model and losses; `masks` follow RigL."""
    model = habit.build()
    optimizer = make_optimizer(model)
    weights = {name: model.get_parameter(name) for name in masks}
    losses = []
    _mask(weights, masks)
    model.train()
    for step in steps:
        optimizer.zero_grad()
        loss = habit.loss(habit.run(model, step))
        loss.backward()
        grads = {n: w.grad.clone() for n, w in weights.items() if w.grad is not None}
        for name in grads:
            weights[name].grad.masked_fill_(~masks[name], 0)  # pyright: ignore[reportOptionalMemberAccess]
        optimizer.step()
        _mask(weights, masks)
        losses.append(loss.item())
        if step % UPDATE_EVERY == 0:
            for name, grad in grads.items():
                masks[name] = _rigged(weights[name].detach(), masks[name], grad, step)
                buffer = optimizer.state[weights[name]].get("momentum_buffer")
                if buffer is not None:
                    buffer.masked_fill_(~masks[name], 0)
            _mask(weights, masks)
    return model, losses


@torch.no_grad()
def _mask(weights: dict[str, nn.Parameter], masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0)


def _rigged(weight: Tensor, mask: Tensor, grad: Tensor, step: int) -> Tensor:
    """Return the next mask by RigL's rule: drop the smallest weights, grow by the gradient."""
    fraction = METHOD.alpha / 2 * (1 + math.cos(math.pi * step / TOTAL_STEPS))
    number = math.floor(fraction * int(mask.sum()))
    magnitude = weight.abs().flatten().masked_fill(~mask.flatten(), torch.inf)
    new = mask.flatten().clone()
    new[magnitude.argsort(stable=True)[:number]] = False
    growth = grad.abs().flatten().masked_fill(new, -1)
    new[growth.argsort(stable=True, descending=True)[:number]] = True
    return new.view_as(mask)


def trained(habit: Habit) -> nn.Module:
    """Return a model after some steps of masked training; a dense one where that is refused."""
    made = sparsified(habit, "masked")
    if made is None:
        return habit.build()
    train(habit, *made[:2], range(1, 4))
    return made[0]
