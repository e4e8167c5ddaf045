"""Attention that keeps and applies its scale in the ways of real code: it is that of the wider head."""

import dataclasses
import functools
import math
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import isoflop

HEAD, WIDE_HEAD = 8, 16


class Attention(nn.Module):
    """Four heads; a subclass says in `setup` what it keeps and in `scale` how scores are made."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.setup(32, 4, HEAD)
        self.ratio = 0.0

    def setup(self, width: int, heads: int, head: int) -> None: ...

    def scores(self, q: Any, k: Any) -> Any:
        raise NotImplementedError

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        scores = self.scores(q, k)
        if type(scores) is torch.Tensor and not scores.is_meta:
            self.ratio = (scores / (q @ k.mT)).median().item()
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1))


class ConstantForEveryHead(Attention):
    def setup(self, width, heads, head):
        self.factor = nn.Parameter(torch.full((heads, 1, 1), head**-0.5))

    def scores(self, q, k):
        return q @ k.mT * self.factor


class BufferForEveryHead(ConstantForEveryHead):
    def setup(self, width, heads, head):
        self.register_buffer("factor", torch.full((heads, 1, 1), head**-0.5))


class Frozen(ConstantForEveryHead):
    def setup(self, width, heads, head):
        self.factor = nn.Parameter(torch.tensor(head**-0.5), requires_grad=False)


class HalfPrecision(Attention):
    def setup(self, width, heads, head):
        self.factor = torch.tensor(head**-0.5, dtype=torch.float16)

    def scores(self, q, k):
        return q @ k.mT * self.factor.to(q.dtype)


class Logarithm(Attention):
    def setup(self, width, heads, head):
        self.logit_scale = nn.Parameter(torch.tensor(math.log(head**-0.5)))

    def scores(self, q, k):
        return q @ k.mT * self.logit_scale.exp()


class LogarithmOfTemperature(Attention):
    def setup(self, width, heads, head):
        self.log_temperature = nn.Parameter(torch.tensor(math.log(head**0.5)))

    def scores(self, q, k):
        return q @ k.mT / self.log_temperature.exp()


class Property(Attention):
    def setup(self, width, heads, head):
        self.head_dim = head

    @property
    def factor(self):
        return self.head_dim**-0.5

    def scores(self, q, k):
        return q @ k.mT * self.factor


class CachedProperty(Attention):
    def setup(self, width, heads, head):
        self.head_dim = head

    @functools.cached_property
    def factor(self):
        return self.head_dim**-0.5

    def scores(self, q, k):
        return q @ k.mT * self.factor


class RootInForward(Attention):
    def setup(self, width, heads, head):
        self.attention_head_size = head

    def scores(self, q, k):
        return q @ k.mT / math.sqrt(self.attention_head_size)


class QuotientInForward(Attention):
    def setup(self, width, heads, head):
        self.d_model = width

    def scores(self, q, k):
        return q @ k.mT / math.sqrt(self.d_model / self.heads)


class WholeQuotientInForward(QuotientInForward):
    def scores(self, q, k):
        return q @ k.mT * (self.d_model // self.heads) ** -0.5


class SizeInForward(Attention):
    def scores(self, q, k):
        return q @ k.mT / np.sqrt(q.shape[-1])


class Multiplier(Attention):
    def setup(self, width, heads, head):
        self.base = float(head)

    def scores(self, q, k):
        return q @ k.mT * (HEAD**-0.5 * 2**0.5) * (self.base / q.shape[-1])


class ClassAttribute(Attention):
    factor = HEAD**-0.5

    def scores(self, q, k):
        return q @ k.mT * self.factor


@dataclasses.dataclass
class Options:
    heads: int = 4
    factor: float = HEAD**-0.5


class Dataclass(Attention):
    def setup(self, width, heads, head):
        self.options = Options()

    def scores(self, q, k):
        return q @ k.mT * self.options.factor


class Namespace(Dataclass):
    def setup(self, width, heads, head):
        self.options = types.SimpleNamespace(factor=head**-0.5)


class NestedDict(Attention):
    def setup(self, width, heads, head):
        self.options = {"attention": {"factor": head**-0.5, "p": 0.1}}

    def scores(self, q, k):
        return q @ k.mT * self.options["attention"]["factor"]


class Alpha(ClassAttribute):
    def scores(self, q, k):
        return torch.add(torch.zeros(()), q @ k.mT, alpha=self.factor)


class KeywordArguments(ClassAttribute):
    """As in Bloom."""

    def scores(self, q, k):
        q, k = q.flatten(0, 1), k.flatten(0, 1)
        scores = torch.zeros(()).expand(len(q), q.shape[1], q.shape[1])
        scores = scores.baddbmm(batch1=q, batch2=k.mT, beta=1.0, alpha=self.factor)
        return scores.unflatten(0, (-1, self.heads))


class InPlace(ClassAttribute):
    def scores(self, q, k):
        scores = q @ k.mT
        scores *= self.factor
        return scores


class FourthRoots(Attention):
    def setup(self, width, heads, head):
        self.fourth = head**-0.25

    def scores(self, q, k):
        return (q * self.fourth) @ (k * self.fourth).mT


class Closure(Attention):
    def setup(self, width, heads, head):
        factor = head**-0.5
        self.apply_scale = lambda scores: scores * factor

    def scores(self, q, k):
        return self.apply_scale(q @ k.mT)


class DefaultArgument(Attention):
    def scores(self, q, k, factor=HEAD**-0.5):
        return q @ k.mT * factor


REFUSED = (Closure, DefaultArgument)
FOLLOWED = [c for c in Attention.__subclasses__() if c not in REFUSED]
FOLLOWED += [c for base in list(FOLLOWED) for c in base.__subclasses__()]


def widened(kind: type[Attention]) -> Attention:
    model = nn.Sequential(nn.Linear(6, 32), kind(), nn.Linear(32, 5))
    x = torch.randn(2, 7, 6)
    wide: Any = isoflop.transform(model, isoflop.SparseWide(0.75), example_inputs=x)[0]
    assert wide[1].q.weight.shape == (64, 64)
    wide(x)
    return wide[1]


@pytest.mark.parametrize("kind", FOLLOWED)
def test_the_scale_follows_the_head(kind):
    assert widened(kind).ratio == pytest.approx(WIDE_HEAD**-0.5, rel=1e-3)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_scale_that_cannot_follow_is_refused(kind):
    with pytest.raises(isoflop.WideningError, match=r"Keep it as an attribute, or compute it"):
        widened(kind)
