"""Stand-ins return the shapes that the functions return, and make their comparisons."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isoflop
from isoflop.widths.stand_ins import STAND_INS, recurrent, stand_in_of

X = torch.randn(2, 8, 6, 6)


def gates(count):
    """Return the parameters of a recurrent cell from 5 to 4 channels."""
    return (
        torch.ones(4 * count, 5),
        torch.ones(4 * count, 4),
        torch.ones(4 * count),
        torch.ones(4 * count),
    )


CALLS = {
    "linear": (F.linear, (torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5)), {}),
    "layer_norm": (F.layer_norm, (X, (6, 6), torch.ones(6, 6)), {}),
    "rms_norm": (F.rms_norm, (X, (6,), torch.ones(6)), {}),
    "batch_norm": (F.batch_norm, (X, torch.zeros(8), torch.ones(8)), {}),
    "conv1d": (F.conv1d, (X[0], torch.ones(3, 6, 2)), {"padding": "same", "dilation": 2}),
    "conv2d": (
        F.conv2d,
        (X, torch.ones(4, 4, 3, 4)),
        {"padding": "same", "dilation": 2, "groups": 2},
    ),
    "conv2d padded": (F.conv2d, (X, torch.ones(3, 8, 2, 4), torch.ones(3), 2, (1, 2)), {}),
    "conv3d": (
        F.conv3d,
        (torch.ones(2, 2, 4, 6, 6), torch.ones(3, 2, 3, 3, 5)),
        {"padding": "same"},
    ),
    "pad": (F.pad, (X, (1, 2, 0, -1)), {}),
    "pad channels": (F.pad, (X, (0, 0, 0, 0, 1, 3)), {}),
    "roll": (torch.roll, (X, (1, -2), (2, 3)), {}),
    "interpolate": (F.interpolate, (X,), {"scale_factor": 2}),
    "interpolate half": (F.interpolate, (X,), {"scale_factor": (0.5, 1.5)}),
    "interpolate to": (F.interpolate, (X,), {"size": (3, 9), "mode": "bilinear"}),
    "solve_triangular": (
        torch.linalg.solve_triangular,
        (torch.eye(4).expand(3, 1, 4, 4), torch.ones(2, 4, 5)),
        {"upper": False},
    ),
    "baddbmm": (
        torch.baddbmm,
        (torch.ones(1, 1, 5), torch.ones(2, 3, 4), torch.ones(2, 4, 5)),
        {"beta": 0.5},
    ),
    "addcmul": (torch.addcmul, (X[:1], X, X[:, :1]), {"value": 2}),
    "local_response_norm": (F.local_response_norm, (X, 3), {}),
    "pad_sequence": (
        torch._C._nn.pad_sequence,  # pyright: ignore[reportAttributeAccessIssue]
        ([torch.ones(3, 4), torch.ones(5, 4)], True),
        {},
    ),
    "bilinear": (
        F.bilinear,
        (torch.ones(2, 3, 4), torch.ones(2, 3, 5), torch.ones(6, 4, 5), torch.ones(6)),
        {},
    ),
    "gru_cell": (torch.gru_cell, (torch.ones(2, 5), torch.ones(2, 4), *gates(3)), {}),
    "rnn_tanh_cell": (torch.rnn_tanh_cell, (torch.ones(2, 5), torch.ones(2, 4), *gates(1)), {}),
    "rnn_relu_cell": (torch.rnn_relu_cell, (torch.ones(2, 5), torch.ones(2, 4), *gates(1)), {}),
    "fold": (F.fold, (torch.ones(2, 12, 20), (6, 5), (2, 2)), {"dilation": 1}),
    "fold square": (F.fold, (torch.ones(2, 12, 16), 5, 2), {}),
    "grouped_mm": (
        torch._grouped_mm,  # type: ignore[attr-defined]
        (torch.ones(6, 8), torch.ones(2, 8, 16)),
        {"offs": torch.tensor([2, 6], dtype=torch.int32)},
    ),
    "index": (torch.Tensor.__getitem__, (X, (..., slice(1, 3))), {}),
    "index two": (torch.Tensor.__getitem__, (X, (0, slice(None), None, slice(4))), {}),
    "index from the end": (torch.Tensor.__getitem__, (X, (..., slice(3))), {}),
    "polar": (torch.polar, (X, X[:1]), {}),
    "reshape": (torch.Tensor.reshape, (X, (2, -1)), {}),
    "reshape to sizes": (torch.Tensor.reshape, (X, 2, 8, 36), {}),
    "view": (torch.Tensor.view, (X, 16, -1, 6), {}),
    "view as": (torch.Tensor.view, (X, torch.int32), {}),
    "cross_entropy": (F.cross_entropy, (torch.ones(2, 5), torch.tensor([0, 4])), {}),
    "nll_loss": (F.nll_loss, (torch.ones(2, 5), torch.tensor([0, 4])), {"reduction": "none"}),
    "multi_margin_loss": (F.multi_margin_loss, (torch.ones(5), torch.tensor(4)), {}),
    "unfold": (F.unfold, (X, (3, 2)), {"dilation": (1, 2), "padding": (2, 1), "stride": 2}),
}


@pytest.mark.parametrize("name", CALLS)
def test_shape_is_that_of_the_function(name):
    function, args, kwargs = CALLS[name]
    assert STAND_INS[function](*args, **kwargs).shape == function(*args, **kwargs).shape


def test_an_lstm_cell_returns_both_states():
    args = (torch.ones(2, 5), (torch.ones(2, 4), torch.ones(2, 4)), *gates(4))
    states = STAND_INS[torch.lstm_cell](*args)
    assert [s.shape for s in states] == [s.shape for s in torch.lstm_cell(*args)]


SPLITS = (torch.tensor_split, torch.Tensor.tensor_split, torch.hsplit, torch.Tensor.hsplit)


@pytest.mark.parametrize("function", SPLITS)
@pytest.mark.parametrize("parts", [2, 4, (1, 4)])
def test_splits_return_all_parts(function, parts):
    shapes = [part.shape for part in function(X, parts)]
    assert [part.shape for part in STAND_INS[function](X, indices_or_sections=parts)] == shapes


@pytest.mark.parametrize("function", [torch.chunk, torch.Tensor.chunk])
@pytest.mark.parametrize("chunks", [2, 3, 5])
def test_chunks_are_those_of_the_function(function, chunks):
    shapes = [part.shape for part in function(X, chunks, 1)]
    assert [part.shape for part in STAND_INS[function](X, chunks, 1)] == shapes


def test_a_split_into_unequal_parts_returns_them():
    parts = STAND_INS[torch.tensor_split](X, 3, dim=1)
    assert [part.shape[1] for part in parts] == [3, 3, 2]


def test_gradients_have_the_shapes_of_the_inputs():
    grad = STAND_INS[torch.autograd.grad]
    assert [g.shape for g in grad(X.sum(), X)] == [X.shape]
    assert [g.shape for g in grad([X], (X, X[0]), create_graph=True)] == [X.shape, X[0].shape]
    batched = grad(X, [X], torch.ones(5, *X.shape), is_grads_batched=True)
    assert [g.shape for g in batched] == [(5, *X.shape)]


def test_the_input_may_be_a_keyword():
    convolve = stand_in_of(F.conv2d)
    assert convolve(input=X, weight=torch.ones(3, 8, 1, 1)).shape == (2, 3, 6, 6)
    assert stand_in_of(F.linear)(input=X, weight=torch.ones(3, 6)).shape == (2, 8, 6, 3)


def test_every_function_is_covered():
    others = {
        torch.Tensor.roll,
        torch.Tensor.__setitem__,
        torch.Tensor.data_ptr,
        torch.lstm_cell,
        torch.autograd.grad,
        *SPLITS,
        torch.chunk,
        torch.Tensor.chunk,
    }
    assert {function for function, *_ in CALLS.values()} | others == set(STAND_INS)


def test_rows_chosen_by_a_mask_take_a_value_of_their_size():
    put = STAND_INS[torch.Tensor.__setitem__]
    mask = torch.tensor([[True, False]])
    put(torch.zeros(1, 2, 5), mask, torch.ones(5))
    put(torch.zeros(1, 2, 5), mask, torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="put into"):
        put(torch.zeros(1, 2, 5), mask, torch.ones(4))
    x = torch.zeros(2, 3)
    put(x, 0, 1.0)
    assert x.sum() == 3


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (F.linear, (torch.randn(2, 3), torch.randn(5, 4))),
        (F.layer_norm, (X, (5,))),
        (F.batch_norm, (X, torch.zeros(7), torch.ones(8))),
    ],
)
def test_sizes_that_do_not_fit_are_refused(function, args):
    with pytest.raises(RuntimeError, match="got"):
        STAND_INS[function](*args)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2, "bias": False}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers(kind, options, batch_first):
    layer = kind(5, 7, batch_first=batch_first, **options)
    x = torch.randn(3, 4, 5)
    expected, actual = layer(x), recurrent(layer, x)
    assert actual[0].shape == expected[0].shape
    states = (actual[1], expected[1]) if kind is nn.LSTM else ([actual[1]], [expected[1]])
    assert [s.shape for s in states[0]] == [s.shape for s in states[1]]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projected_lstm():
    layer = nn.LSTM(5, 7, proj_size=3, num_layers=2)
    x = torch.randn(4, 2, 5)
    (out, state), (found, found_state) = layer(x), recurrent(layer, x)
    assert found.shape == out.shape
    assert [s.shape for s in found_state] == [s.shape for s in state]


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MultiMarginLoss()])
def test_a_model_that_returns_its_loss_alone_keeps_its_classes(loss):
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(12, 12) for _ in range(3)), nn.Linear(12, 5))
            self.loss = loss

        def forward(self, x, target):
            return self.loss(self.layers(x), target)

    inputs = (torch.randn(4, 12), torch.tensor([0, 1, 2, 4]))
    wide: Any
    wide, _ = isoflop.transform(Loss(), isoflop.SparseWide(0.5), example_inputs=inputs)
    assert wide.layers[-1].out_features == 5
    assert wide.layers[0].out_features == 17
