"""Whatever a loop does with gradients, both storages have the same ones, and the same masks."""

# Models here are told apart by what they do, not by their types.
# pyright: reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad

import isoflop
from isoflop.errors import NoEffectWarning
from isoflop.kernels import densify

STEPS = 6


class Run:
    """A small network in training; every second step computes dense gradients, or every one."""

    def __init__(self, storage, method: Any, fused=False):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.model.append(nn.Linear(16, 4)).double()
        self.parameters = list(self.model.parameters())
        # What users' hooks see, whenever they are registered.
        self.seen: list[float] = []
        self.norms: list[float] = []
        if storage == "masked":
            self.watch(self.model[0].weight)
        self.optimizer: Any = torch.optim.SGD(self.parameters, lr=0.05, momentum=0.9)
        if fused:
            self.optimizer = torch.optim.AdamW(self.parameters, lr=0.01, eps=1e-4, fused=True)
        self.sparsifier = isoflop.sparsify(
            self.model,
            self.optimizer,
            method,
            isoflop.plain_plan(self.model, 0.6, dense_ends=False),
            total_steps=STEPS,
            storage=storage,
        )
        if storage == "compressed":
            self.watch(self.model[0].values)
        for parameter in self.parameters[1:]:
            self.watch(parameter)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    def watch(self, parameter):
        parameter.register_post_accumulate_grad_hook(
            lambda p: self.seen.append(float(p.grad.detach().norm()))
        )

    def loss(self, step, part=slice(None)):
        generator = torch.Generator().manual_seed(step)
        x = 5 * torch.randn(16, 8, generator=generator, dtype=torch.double)
        y = torch.randn(16, 4, generator=generator, dtype=torch.double)
        return F.mse_loss(self.model(x[part]), y[part])

    def note(self):
        grads = [p.grad.detach().flatten() for p in self.parameters if p.grad is not None]
        self.norms.append(float(torch.cat(grads).norm()))

    def clip(self, norm=0.05):
        self.note()
        nn.utils.clip_grad_norm_(self.parameters, norm)

    def weights(self):
        dense = densify(self.model)
        return {name: dense.get_parameter(name) for name in self.sparsifier.masks}


def plain(run, step):
    run.optimizer.zero_grad()
    run.loss(step).backward()
    run.note()
    run.optimizer.step()


def clipped(run, step):
    run.optimizer.zero_grad()
    run.loss(step).backward()
    run.clip()
    run.optimizer.step()


def clipped_by_value(run, step):
    run.optimizer.zero_grad()
    run.loss(step).backward()
    run.note()
    nn.utils.clip_grad_value_(run.parameters, 0.01)
    run.optimizer.step()


def clipped_parts(run, step):
    run.optimizer.zero_grad()
    for part in range(3):
        (run.loss(3 * step + part) / 3).backward()
        run.clip(0.5)
    run.optimizer.step()


def accumulated(run, step):
    run.optimizer.zero_grad()
    for part in range(0, 16, 4):
        (run.loss(step, slice(part, part + 4)) / 4).backward()
    run.clip()
    run.optimizer.step()


def zeroed_in_place(run, step):
    run.optimizer.zero_grad(set_to_none=False)
    for part in range(0, 16, 4):
        (run.loss(step, slice(part, part + 4)) / 4).backward()
    run.clip()
    run.optimizer.step()


def zeroed_halfway(run, step):
    for t in (step + 100, step):
        run.optimizer.zero_grad(set_to_none=step % 4 > 1)
        run.loss(t).backward()
    run.clip()
    run.optimizer.step()


def never_zeroed(run, step):
    (run.loss(step) / 10).backward()
    run.note()
    run.optimizer.step()


def twice_through_a_graph(run, step):
    run.optimizer.zero_grad()
    loss = run.loss(step)
    loss.backward(retain_graph=True)
    loss.backward()
    run.clip()
    run.optimizer.step()


def for_given_inputs(run, step):
    run.optimizer.zero_grad()
    run.loss(step).backward(inputs=run.parameters)
    run.clip()
    run.optimizer.step()


def differentiated_again(run, step):
    for parameter in run.parameters:
        parameter.grad = None
    run.loss(step).backward(create_graph=True)
    (0.1 * sum(p.grad.square().sum() for p in run.parameters)).backward()
    run.clip()
    run.optimizer.step()


def unscaled(run, step):
    run.optimizer.zero_grad()
    run.scaler.scale(run.loss(step)).backward()
    run.scaler.unscale_(run.optimizer)
    run.clip()
    run.scaler.step(run.optimizer)
    run.scaler.update()


def scaled(run, step):
    run.optimizer.zero_grad()
    run.scaler.scale(run.loss(step)).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()


def by_closure(run, step):
    def closure():
        run.optimizer.zero_grad()
        loss = run.loss(step)
        loss.backward()
        run.clip()
        return loss

    run.optimizer.step(closure)


def taken_and_set(run, step):
    grads = torch.autograd.grad(run.loss(step), run.parameters)
    for parameter, gradient in zip(run.parameters, grads, strict=True):
        parameter.grad = gradient
    run.optimizer.step()


def divided_and_set(run, step):
    run.optimizer.zero_grad()
    run.loss(step).backward()
    for parameter in run.parameters:
        parameter.grad = parameter.grad / 2
    run.optimizer.step()


def decayed_by_hand(run, step):
    run.optimizer.zero_grad()
    run.loss(step).backward()
    for parameter in run.parameters:
        parameter.grad.add_(parameter.detach(), alpha=0.01)
    run.optimizer.step()


def sharpness_aware(run, step):
    run.optimizer.zero_grad()
    run.loss(step).backward()
    with torch.no_grad():
        moves = [0.05 * p.grad for p in run.parameters]
        for parameter, move in zip(run.parameters, moves, strict=True):
            parameter.add_(move)
    run.optimizer.zero_grad()
    run.loss(step).backward()
    with torch.no_grad():
        for parameter, move in zip(run.parameters, moves, strict=True):
            parameter.sub_(move)
    run.optimizer.step()


def left_out(run, step):
    run.optimizer.zero_grad()
    run.loss(step).backward()
    run.clip()
    if step != 3:
        run.optimizer.step()


def without_a_layer(run, step):
    run.optimizer.zero_grad(set_to_none=False)
    first, *_, last = run.model
    loss = run.loss(step) if step == 0 else last(first(torch.ones(2, 8).double())).square().sum()
    loss.backward()
    run.clip()
    run.optimizer.step()


def penalty(run):
    return 0.01 * sum(p.abs().sum() + p.square().sum() for p in run.parameters)


def penalised(run, step):
    run.optimizer.zero_grad()
    (run.loss(step) + penalty(run)).backward()
    run.clip()
    run.optimizer.step()


def penalised_apart(run, step):
    run.optimizer.zero_grad()
    for part in (penalty, lambda run: run.loss(step), penalty)[step % 2 :]:
        part(run).backward()
    run.clip()
    run.optimizer.step()


def flat(run, step):
    """With a penalty on the norm of the gradients of weights, over two batches."""
    run.optimizer.zero_grad()
    for t in (step, step + 100):
        loss = run.loss(t)
        gradients = torch.autograd.grad(loss, run.parameters, create_graph=True)
        (loss + 0.1 * sum(g.square().sum() for g in gradients)).backward()
    run.clip()
    run.optimizer.step()


def set_from_a_graph(run, step):
    gradients = torch.autograd.grad(run.loss(step), run.parameters, create_graph=True)
    for parameter, gradient in zip(run.parameters, gradients, strict=True):
        parameter.grad = gradient.detach()
    run.clip()
    run.optimizer.step()


def hooked(run, step):
    handles = [p.register_hook(lambda g: 3 * g) for p in run.parameters]
    accumulated(run, step)
    for handle in handles:
        handle.remove()


LOOPS = [
    *(
        plain,
        clipped,
        clipped_by_value,
        clipped_parts,
        accumulated,
        zeroed_in_place,
        zeroed_halfway,
    ),
    *(
        never_zeroed,
        twice_through_a_graph,
        for_given_inputs,
        differentiated_again,
        unscaled,
        scaled,
    ),
    *(by_closure, taken_and_set, divided_and_set, decayed_by_hand, sharpness_aware, left_out),
    *(without_a_layer, penalised, penalised_apart, flat, set_from_a_graph, hooked),
]

METHODS = {
    "rigl": isoflop.RigL(update_every=2, end_fraction=1.0),
    "rigl at every step": isoflop.RigL(update_every=1, end_fraction=1.0),
    "granet": isoflop.GraNet(update_every=2),
}


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph", "ignore:A second backward")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("loop", LOOPS)
def test_both_storages_train_alike(loop, name):
    for fused in (False, True) if loop in (scaled, unscaled) else (False,):
        runs = [Run(s, METHODS[name], fused) for s in ("masked", "compressed")]
        for step in range(STEPS):
            for run in runs:
                loop(run, step)
            for mask, values in runs[0].sparsifier.masks.items():
                assert torch.equal(values, runs[1].sparsifier.masks[mask])
        masked, compressed = runs
        assert masked.norms == pytest.approx(compressed.norms)
        assert sorted(masked.seen) == pytest.approx(sorted(compressed.seen))
        assert masked.sparsifier.history == compressed.sparsifier.history
        assert sum(sum(e["new"].values()) for e in masked.sparsifier.history) > 0
        torch.testing.assert_close(masked.weights(), compressed.weights())
        for parameter in masked.parameters:
            parameter.grad = None  # which with a graph would be a cycle


def test_a_norm_is_that_of_live_weights():
    """In steps after which masks change no less than in others."""
    run = Run("masked", METHODS["rigl at every step"])
    for step in range(STEPS):
        run.optimizer.zero_grad()
        run.loss(step).backward()
        for name, mask in run.sparsifier.masks.items():
            gradient = run.model.get_parameter(name).grad
            assert not gradient[~mask].any()
            assert gradient[mask].any()
        run.optimizer.step()


def test_what_is_remembered_of_gradients_is_clipped_and_unscaled_like_them():
    method = isoflop.SNFS(update_every=2)
    clipped_run, unscaled_run = Run("masked", method), Run("masked", method)
    for step in range(STEPS):
        clipped(clipped_run, step)
        unscaled(unscaled_run, step)
    memories = [run.sparsifier.state_dict()["memory"] for run in (clipped_run, unscaled_run)]
    assert memories[0]
    torch.testing.assert_close(*memories)


def test_gradients_of_straight_through_training_stay_dense():
    run = Run("masked", isoflop.SRSTE())
    run.loss(0).backward()
    for name, mask in run.sparsifier.masks.items():
        assert run.model.get_parameter(name).grad[~mask].any()


def projected(run, step):
    """Two tasks, whose gradients are put together by hand (PCGrad)."""
    grads = []
    for task in (step, step + 50):
        run.optimizer.zero_grad()
        run.loss(task).backward()
        grads.append([p.grad.clone() for p in run.parameters])
    for parameter, first, second in zip(run.parameters, *grads, strict=True):
        parameter.grad = 0.3 * first + 0.9 * second
    run.optimizer.step()


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_gradients_put_together_from_those_of_live_weights_grow_nothing(storage):
    run = Run(storage, METHODS["rigl"])
    projected(run, 0)
    masks = {name: mask.clone() for name, mask in run.sparsifier.masks.items()}
    with pytest.warns(NoEffectWarning, match=r"'0.weight', '2.weight', '4.weight' was set by hand"):
        projected(run, 1)
    for name, mask in run.sparsifier.masks.items():
        assert torch.equal(mask, masks[name])


def test_hooks_that_change_single_numbers_grow_nothing_in_compressed_storage():
    run = Run("compressed", METHODS["rigl at every step"])
    for parameter in run.parameters:
        parameter.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    masks = {name: mask.clone() for name, mask in run.sparsifier.masks.items()}
    with pytest.warns(NoEffectWarning, match="or changed by a hook"):
        plain(run, 0)
    for name, mask in run.sparsifier.masks.items():
        assert torch.equal(mask, masks[name])


def test_a_dense_gradient_that_is_set_by_hand_is_taken_as_it_is():
    runs = [Run("masked", METHODS["rigl at every step"]) for _ in range(2)]
    for step in range(STEPS):
        plain(runs[0], step)
        run = runs[1]
        run.optimizer.zero_grad()
        run.loss(step + 50).backward()
        parameters = dict(run.model.named_parameters())
        x = torch.Generator().manual_seed(step)
        inputs = 5 * torch.randn(16, 8, generator=x, dtype=torch.double)
        y = torch.randn(16, 4, generator=x, dtype=torch.double)
        grads = grad(lambda p: F.mse_loss(functional_call(run.model, p, (inputs,)), y))(parameters)  # noqa: B023
        for name, parameter in parameters.items():
            parameter.grad = grads[name].detach()
        run.optimizer.step()
    for name, mask in runs[0].sparsifier.masks.items():
        assert torch.equal(mask, runs[1].sparsifier.masks[name])
