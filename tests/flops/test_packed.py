"""Packed sequences cost what their steps cost, in counts and transforms."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

import isoflop
from isoflop.errors import InputError

LENGTHS = (3, 6, 2, 1)


class Net(nn.Module):
    """A linear layer, a recurrence on packed sequences, and a linear layer.

    Args:
        recurrence: Has 16 inputs.
        lengths: Maps padded inputs and lengths to what `pack_padded_sequence` is given.
        padded: Whether the head sees every step, or else the last states.
    """

    def __init__(self, recurrence: nn.RNNBase, lengths: Any, padded: bool = True) -> None:
        super().__init__()
        self.stem, self.recurrence, self.lengths = nn.Linear(12, 16), recurrence, lengths
        self.head, self.padded = nn.Linear(16, 5), padded

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        first = self.recurrence.batch_first
        packed = rnn.pack_padded_sequence(
            self.stem(x), self.lengths(x, lengths), batch_first=first, enforce_sorted=False
        )
        y, states = self.recurrence(packed)
        if self.padded:
            steps = x.shape[1 if first else 0]
            y, found = rnn.pad_packed_sequence(y, batch_first=first, total_length=steps)
            assert found.tolist() == list(LENGTHS)
            return self.head(y)
        states = states[0] if isinstance(states, tuple) else states
        return self.head(states[-1])


def weights(recurrence: nn.RNNBase) -> int:
    return sum(p.numel() for name, p in recurrence.named_parameters() if "weight" in name)


RECURRENCES = {
    "lstm": lambda: nn.LSTM(16, 16, batch_first=True),
    "deep": lambda: nn.LSTM(16, 16, num_layers=2, batch_first=True, dropout=0.1),
    "bidirectional": lambda: nn.GRU(16, 8, bidirectional=True, batch_first=True),
    "projected": lambda: nn.LSTM(16, 24, proj_size=16, batch_first=True),
    "time first": lambda: nn.GRU(16, 16),
    "tanh": lambda: nn.RNN(16, 16, batch_first=True),
    "relu": lambda: nn.RNN(16, 16, nonlinearity="relu", bias=False),
}

WIDE = isoflop.SparseWide(0.3, dense_ends=False)


@pytest.mark.parametrize(
    ("name", "padded"), [*((name, True) for name in RECURRENCES), ("lstm", False), ("tanh", False)]
)
def test_every_recurrence_is_counted_widened_and_frozen(name, padded):
    make = RECURRENCES[name]
    model = Net(make(), lambda x, lengths: lengths, padded)
    x = torch.randn(4, 6, 12) if model.recurrence.batch_first else torch.randn(6, 4, 12)
    inputs = x, torch.tensor(LENGTHS)
    rows = 24 if padded else 4
    macs = 24 * 12 * 16 + sum(LENGTHS) * weights(model.recurrence) + rows * 16 * 5
    assert isoflop.profile(model, inputs).macs == macs
    new, plan = isoflop.transform(model, WIDE, example_inputs=inputs)
    assert plan.dense_macs == macs
    assert new(*inputs).shape == model(*inputs).shape
    frozen = isoflop.freeze(model, example_inputs=inputs)
    torch.testing.assert_close(frozen(*inputs), model.eval()(*inputs))


KNOWN = {
    "tensor": lambda x, lengths: lengths,
    "list": lambda x, lengths: lengths.tolist(),
    "constant": lambda x, lengths: list(LENGTHS),
    "on the CPU": lambda x, lengths: lengths.cpu(),
    "clamped": lambda x, lengths: lengths.clamp(min=1),
    "integers": lambda x, lengths: [int(n) for n in lengths],
    "of a mask": lambda x, lengths: (torch.arange(6) < lengths[:, None]).sum(1),
}


@pytest.mark.parametrize("lengths", KNOWN.values(), ids=KNOWN)
def test_lengths_that_follow_from_integers_are_known(lengths):
    model = Net(nn.LSTM(16, 16, batch_first=True), lengths)
    inputs = torch.randn(4, 6, 12), torch.tensor(LENGTHS)
    macs = 24 * 12 * 16 + 12 * 2 * 16 * 64 + 24 * 16 * 5
    assert isoflop.profile(model, inputs).macs == macs


def test_lengths_that_follow_from_real_numbers_are_refused():
    model = Net(nn.LSTM(16, 16, batch_first=True), lambda x, lengths: (x[..., 0] > 0).sum(1) + 1)
    with pytest.raises(InputError, match=r"pack_padded_sequence.*lengths.*integer"):
        isoflop.profile(model, (torch.randn(4, 6, 12), torch.tensor(LENGTHS)))


class OfList(nn.Module):
    """Packs sequences itself, and takes them apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lstm, self.head = nn.Linear(12, 16), nn.LSTM(16, 16), nn.Linear(16, 5)

    def forward(self, sequences: list[Tensor]) -> list[Tensor]:
        packed = rnn.pack_sequence([self.stem(s) for s in sequences], enforce_sorted=False)
        return [self.head(s) for s in rnn.unpack_sequence(self.lstm(packed)[0])]


class OfPacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(12, 16, bidirectional=True), nn.Linear(32, 5)

    def forward(self, packed: rnn.PackedSequence) -> Any:
        y, _ = self.lstm(packed)
        return y._replace(data=self.head(y.data))


def test_sequences_come_packed_or_in_a_list():
    sequences = [torch.randn(length, 12) for length in LENGTHS]
    made = isoflop.profile(OfList(), (sequences,))
    assert made.macs == 12 * (12 * 16 + 2 * 16 * 64 + 16 * 5)
    packed = rnn.pack_sequence(sequences, enforce_sorted=False)
    model = OfPacked()
    assert isoflop.profile(model, (packed,)).macs == 12 * (2 * 64 * (12 + 16) + 32 * 5)
    new: Any
    for dense, inputs in ((OfList(), (sequences,)), (model, (packed,))):
        new, plan = isoflop.transform(dense, WIDE, example_inputs=inputs)
        assert plan.dense_macs == isoflop.profile(dense, inputs).macs
        new(*inputs)
    frozen: Any = isoflop.freeze(model, example_inputs=(packed,))
    torch.testing.assert_close(frozen(packed).data, model.eval()(packed).data)
