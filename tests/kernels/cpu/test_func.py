"""Sparse layers under `torch.func` and forward-mode AD, which do not reach the compiled kernels."""

# Models here are told apart by what they do, not by their types.
# pyright: reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.utils._pytree import tree_map

import isoflop
from isoflop.errors import KernelError
from isoflop.kernels import densify


def build(kind, seed=0, every=1):
    """Return a compressed model in training; in the next step it computes dense gradients."""
    torch.manual_seed(seed)
    if kind == "linear":
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    else:
        convolutions = nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2)
        model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        isoflop.RigL(update_every=every, end_fraction=1.0),
        isoflop.plain_plan(model, 0.5, dense_ends=False),
        total_steps=400,
        storage="compressed",
        seed=seed,
    )
    return model, optimizer, sparsifier


SHAPES = {"linear": (5, 6), "convolution": (5, 2, 6, 6)}


def mapped_backward(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    basis = torch.eye(y[0].numel())
    return vmap(lambda v: torch.autograd.grad(y[0], x, v, retain_graph=True)[0])(basis)


def dual(model, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


TRANSFORMS = {
    "vmap": lambda model, x: vmap(model)(x[None].repeat(3, *[1] * x.ndim)),
    "functional_call": lambda model, x: functional_call(
        model, dict(model.named_parameters()), (x,)
    ),
    "grad": lambda model, x: grad(lambda x: model(x).square().sum())(x),
    "vjp": lambda model, x: vjp(model, x)[1](torch.ones_like(model(x))),
    "jvp": lambda model, x: jvp(model, (x,), (torch.ones_like(x),)),
    "jacrev": lambda model, x: jacrev(model)(x),
    "jacfwd": lambda model, x: jacfwd(model)(x),
    "hessian": lambda model, x: hessian(lambda x: model(x).sum())(x[:1]),
    "forward-mode": dual,
    "mapped backward": mapped_backward,
    "jacobian": lambda model, x: jacobian(model, x),
    "vectorized": lambda model, x: jacobian(model, x, vectorize=True),
    "vectorized forward": lambda model, x: jacobian(
        model, x, vectorize=True, strategy="forward-mode"
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.torch.jit.script")
@pytest.mark.parametrize("every", [1, 100])  # with and without dense gradients
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_functions_of_the_input(name, kind, every):
    model, *_ = build(kind, every=every)
    dense = densify(model)
    x = torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(1))
    results = [TRANSFORMS[name](each, x) for each in (model, dense)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_of_single_samples(kind):
    model, *_ = build(kind)
    parameters = dict(model.named_parameters())
    x = torch.randn(SHAPES[kind])

    def loss(parameters, x):
        return functional_call(model, parameters, (x[None],)).square().sum()

    single = vmap(grad(loss), in_dims=(None, 0))(tree_map(torch.Tensor.detach, parameters), x)
    model(x).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(single[name].sum(0), parameter.grad)


@pytest.mark.parametrize("kind", SHAPES)
def test_ensembles_of_different_masks_are_refused(kind):
    models = [build(kind, seed)[0] for seed in range(3)]
    x = torch.randn(SHAPES[kind])
    state = stack_module_state(models)
    with pytest.raises(KernelError, match="do not belong to its positions"):
        vmap(lambda *state: functional_call(models[0], state, (x,)))(*state)


def test_a_backward_pass_through_vmap_decides_growth():
    model, optimizer, sparsifier = build("linear")
    other, other_optimizer, other_sparsifier = build("linear")
    x = torch.randn(5, 6)
    vmap(model)(x).square().sum().backward()
    other(x).square().sum().backward()
    optimizer.step()
    other_optimizer.step()
    assert sum(sparsifier.history[0]["new"].values()) > 0
    for name, mask in other_sparsifier.masks.items():
        assert torch.equal(mask, sparsifier.masks[name])


def test_gradients_of_values_alone_decide_no_growth():
    model, optimizer, sparsifier = build("linear")
    masks = sparsifier.masks
    parameters = dict(model.named_parameters())
    x = torch.randn(5, 6)
    grads = grad(lambda p: functional_call(model, p, (x,)).square().sum())(parameters)
    for name, parameter in parameters.items():
        parameter.grad = grads[name].detach()
    with pytest.warns(isoflop.errors.NoEffectWarning, match="says nothing of weights that are off"):
        optimizer.step()
    assert sparsifier.history[0]["new"] == {}
    for name, mask in masks.items():
        assert torch.equal(mask, sparsifier.masks[name])
