"""FLOPs of sparse layers."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import isoflop
from isoflop import kernels
from isoflop.kernels import SparseConv2d, SparseLinear


def network():
    conv, head = nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.Linear(8, 3)
    first = SparseConv2d.from_dense(conv, torch.rand_like(conv.weight) < 0.5)
    last = SparseLinear.from_dense(head, torch.rand_like(head.weight) < 0.5)
    return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last), first, last


def test_profile_counts_the_non_zeros():
    net, first, last = network()
    table = isoflop.profile(net, (5, 4, 9, 9))
    macs = {row.parameters: row.macs for row in table.rows}
    assert macs == {("0.values",): 5 * 16 * first.nnz, ("3.values",): 5 * last.nnz}


@pytest.mark.skipif(not kernels.available(), reason="no compiled kernels")
def test_both_gradients_cost_what_the_forward_pass_does():
    net, first, last = network()
    x = torch.randn(5, 4, 9, 9, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = net(x)
    forward = counter.get_total_flops()
    assert forward == 2 * (5 * 16 * first.nnz + 5 * last.nnz)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * forward
