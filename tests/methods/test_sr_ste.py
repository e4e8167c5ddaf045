import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isoflop.errors import IsoflopError
from isoflop.methods import SRSTE
from isoflop.patterns import NM
from isoflop.sparsity import plain_plan
from isoflop.sparsity.api import sparsify


def test_the_worked_example():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, -0.5, 0.3, 0.05]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sparsifier = sparsify(
        model,
        optimizer,
        SRSTE(),
        plain_plan(model, 0.5, dense_ends=False),
        pattern=NM(n=2, m=4),
        total_steps=3,
    )
    assert sparsifier.masks["weight"].tolist() == [[False, True, True, False]]
    assert torch.equal(model.weight, torch.tensor([[0, -0.5, 0.3, 0]]))
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert model.weight.grad is not None
    assert model.weight.grad[0].tolist() == pytest.approx([1 + 2e-5, 1, 1, 1 + 1e-5])
    # All weights have moved by the gradient: (-.90002, -1.5, -.7, -.95001).
    assert sparsifier.masks["weight"].tolist() == [[False, True, False, True]]
    assert model.weight[0].tolist() == pytest.approx([0, -1.5, 0, -0.95001])


class Straight(torch.autograd.Function):
    """The method as it is written down: a mask in every forward pass, and a gradient through it."""

    @staticmethod
    def forward(ctx, weight, mask, decay):
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    def backward(ctx, grad):
        weight, mask = ctx.saved_tensors
        return grad + ctx.decay * weight * ~mask, None, None


def forward(layers, pattern, decay, x):
    for layer in layers:
        mask = pattern.top(layer.weight.detach().abs(), layer.weight.numel() // 2)
        weight = Straight.apply(layer.weight, mask, decay)
        x = torch.tanh(F.linear(x, weight, layer.bias))
    return x


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    ],
)
@pytest.mark.parametrize("closure", [False, True])
def test_it_trains_like_masks_recomputed_in_every_forward_pass(make, closure):
    torch.manual_seed(0)
    reference = nn.ModuleList([nn.Linear(8, 12), nn.Linear(12, 4)]).double()
    model = copy.deepcopy(nn.Sequential(reference[0], nn.Tanh(), reference[1], nn.Tanh()))
    pattern, decay = NM(n=2, m=4), 0.05
    ours, theirs = make(model.parameters()), make(reference.parameters())
    sparsifier = sparsify(
        model,
        ours,
        SRSTE(decay=decay),
        plain_plan(model, 0.5, dense_ends=False),
        pattern=pattern,
        total_steps=30,
    )
    changed = 0
    for step in range(30):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step)).double()
        masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}

        def loss_of(network, optimizer, x=x):
            optimizer.zero_grad()
            loss = (network(x) - x[:, :4]).square().mean()
            loss.backward()
            return loss

        if closure:
            a = ours.step(lambda: loss_of(model, ours))
        else:
            a = loss_of(model, ours)
            ours.step()
        b = loss_of(lambda x: forward(reference, pattern, decay, x), theirs)
        theirs.step()
        torch.testing.assert_close(a, b)
        changed += sum(bool((mask != masks[n]).any()) for n, mask in sparsifier.masks.items())
    assert changed > 0
    for ours_name, name in (("0.weight", "0.weight"), ("2.weight", "1.weight")):
        weight = reference.get_parameter(name).detach()
        mask = pattern.top(weight.abs(), pattern.count(tuple(weight.shape), 0))
        torch.testing.assert_close(model.get_parameter(ours_name).detach(), weight * mask)
        hidden = sparsifier.state_dict()["hidden_weights"][ours_name]
        torch.testing.assert_close(hidden, weight * ~mask)


def test_masked_weights_keep_their_optimizer_state():
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = sparsify(
        model, optimizer, "sr_ste", plain_plan(model, 0.5, dense_ends=False), total_steps=3
    )
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    momentum = optimizer.state[model.weight]["momentum_buffer"]
    assert momentum[~sparsifier.masks["weight"]].all()
    assert not model.weight[~sparsifier.masks["weight"]].any()


@pytest.mark.filterwarnings("ignore:Step .* is past the total_steps")
def test_masks_follow_no_longer_after_the_end():
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sparsifier = sparsify(
        model, optimizer, "sr_ste", plain_plan(model, 0.5, dense_ends=False), total_steps=2
    )
    masks = []
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        model.weight.grad = torch.randn(8, 8, generator=generator)
        optimizer.step()
        masks.append(sparsifier.masks["weight"].clone())
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[1], masks[3])


@pytest.mark.parametrize("decay", [-1.0, math.nan, "1"])
def test_bad_decay(decay):
    with pytest.raises(IsoflopError, match="decay must be"):
        SRSTE(decay=decay)
