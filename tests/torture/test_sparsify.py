"""Sparse training is what plain PyTorch with masks does, in both storages."""

import torch
from tests.torture.checks import assert_close, assert_equal, every_habit
from tests.torture.habit import Habit
from tests.torture.training import sparsified, train, train_plainly

import isoflop

STEPS = range(1, 6)


@every_habit
def test_masked(habit: Habit):
    made = sparsified(habit, "masked")
    if made is None:
        return
    model, optimizer, sparsifier = made
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    first = dict(masks)
    losses = train(habit, model, optimizer, STEPS)
    plain, expected = train_plainly(habit, masks, STEPS)
    assert losses == expected
    check_masks(model, sparsifier.masks, masks)
    state = model.state_dict()
    for key, value in plain.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert_equal([state[key]], [value])
    assert {n: int(m.sum()) for n, m in first.items()} == sparsifier.nnz


def check_masks(model, masks, expected):
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        assert torch.equal(mask, expected[name]), name
        assert not model.get_parameter(name)[~mask].any()


@every_habit
def test_compressed(habit: Habit):
    made = sparsified(habit, "compressed")
    if made is None:
        return
    model, optimizer, sparsifier = made
    other = sparsified(habit, "masked")
    assert other is not None
    masked, other_optimizer, other_sparsifier = other
    for name, mask in other_sparsifier.masks.items():
        assert torch.equal(mask, sparsifier.masks[name])
    losses = train(habit, model, optimizer, STEPS)
    expected = train(habit, masked, other_optimizer, STEPS)
    assert_close([torch.tensor(losses)], [torch.tensor(expected)], habit.rounding)
    assert sparsifier.nnz == other_sparsifier.nnz
    for name, mask in other_sparsifier.masks.items():
        assert torch.equal(mask, sparsifier.masks[name]), name
    isoflop.densify_(model)
    check_masks(model, sparsifier.masks, other_sparsifier.masks)
    weights = dict(model.named_parameters())
    for name, weight in masked.named_parameters():
        assert_close([weights[name].detach()], [weight.detach()], habit.rounding)
