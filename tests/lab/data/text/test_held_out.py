import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from isoflop.lab.data.text import HeldOut
from isoflop.lab.data.text import held_out as module


class Bigram(nn.Module):
    """Predicts each token from the one before it, in the form of models of transformers."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(7, 7, generator=generator))

    def forward(self, tokens):
        return SimpleNamespace(logits=self.table[tokens])


def process(rank=0, count=1):
    return SimpleNamespace(
        process_index=rank,
        num_processes=count,
        device=torch.device("cpu"),
        reduce=lambda total: total,
    )


@pytest.fixture
def held_out():
    tokens = np.random.default_rng(0).integers(7, size=38).astype(np.int32)
    return HeldOut(tokens, text_bytes=50, context=5)


def test_every_token_but_the_first_counts_once(held_out):
    model = Bigram()
    tokens = torch.from_numpy(held_out.tokens).long()
    nats = -model.table.log_softmax(1)[tokens[:-1], tokens[1:]].sum().item()
    found = held_out.evaluate(model, process())
    assert found["loss"] == pytest.approx(nats / 37, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / 37), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 50, rel=1e-6)
    assert not model.training


@pytest.mark.parametrize("count", [2, 3, 4])
def test_processes_share_the_blocks_and_run_equally_often(held_out, count, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 10)
    model = Bigram()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    total, numbers = 0.0, set()
    for rank in range(count):
        calls.clear()
        total += held_out.evaluate(model, process(rank, count))["loss"]
        numbers.add(len(calls))
    assert len(numbers) == 1
    assert total == pytest.approx(held_out.evaluate(model, process())["loss"], rel=1e-6)


def test_a_model_that_knows_nothing(held_out):
    model = Bigram()
    with torch.no_grad():
        model.table.zero_()
    assert held_out.evaluate(model, process())["perplexity"] == pytest.approx(7)


def test_a_hopeless_model_is_measured(held_out):
    model = Bigram()
    with torch.no_grad():
        model.table.mul_(1e4)
    assert held_out.evaluate(model, process())["perplexity"] == math.inf
