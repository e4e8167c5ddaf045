"""Counting leaves what belongs to the user as it was."""

import collections
import functools
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

import isoflop
from isoflop.flops.trace import profile

SEEN: list[Any] = []
NUMBERS = {"calls": 0}
TABLES: dict[int, Any] = {}
LOG: dict[str, list[Any]] = collections.defaultdict(list)
CALLS = 0


class Recorder:
    shared: ClassVar[list[Any]] = []

    def __init__(self):
        self.seen = []

    def __call__(self, module, args, output):
        self.seen.append(output)

    def note(self, module, args, output):
        self.seen.append(output)

    @classmethod
    def note_in_class(cls, module, args, output):
        cls.shared.append(output)
        cls.latest = output


class RecordingModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.register_buffer("mean", torch.zeros(8))

    def hook(self, module, args, output):
        self.seen.append(output)
        self.get_buffer("mean").add_(output.mean(0)).add_(1.0)


RECORDER, MODULE = Recorder(), RecordingModule()
COUNT = torch.zeros(1)


def count_globally(module, args, output):
    global CALLS
    CALLS += 1
    NUMBERS["calls"] += 1
    LOG["outputs"].append(output)
    COUNT.add_(1)


def _helped(output):
    SEEN.append(output)


def _closure():
    calls = 0

    def hook(module, args, output):
        nonlocal calls
        calls += 1
        SEEN.append(output)

    hook.calls = lambda: calls  # type: ignore[attr-defined]
    return hook


CLOSURE: Any = _closure()

HOOKS = {
    "a global function": count_globally,
    "a lambda": lambda m, a, o: SEEN.append(o),
    "one that calls another": lambda m, a, o: _helped(o),
    "an object": RECORDER,
    "a method": RECORDER.note,
    "a class method": Recorder.note_in_class,
    "a method of another module": MODULE.hook,
    "a closure": CLOSURE,
    "a partial": functools.partial(lambda m, a, o, seen: seen.append(o), seen=SEEN),
    "a default": lambda m, a, o, seen=SEEN: seen.append(o),
    "one that reads a value": lambda m, a, o: SEEN.append(o.mean().item()),
    "one that needs NumPy": lambda m, a, o: SEEN.append(o.numpy()),
}


def _assert_untouched():
    assert not SEEN
    assert not LOG
    assert not TABLES
    assert NUMBERS == {"calls": 0}
    assert CALLS == 0
    assert CLOSURE.calls() == 0
    assert not COUNT.any()
    assert not Recorder.shared
    assert not hasattr(Recorder, "latest")
    assert not RECORDER.seen
    assert not MODULE.seen
    assert not MODULE.get_buffer("mean").any()


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_leave_no_trace(name):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[0].register_forward_hook(HOOKS[name])
    model[1].register_forward_pre_hook(lambda module, args: SEEN.append(args))
    model[1].register_forward_pre_hook(lambda m, a, k: SEEN.append(k), with_kwargs=True)
    model[1].register_forward_hook(lambda m, a, k, o: SEEN.append(o), with_kwargs=True)
    model[2].register_forward_hook(lambda m, a, o: SEEN.append(o), always_call=True)
    model[2].register_full_backward_hook(lambda m, i, o: SEEN.append(o))
    assert profile(model, (5, 8)).macs == 5 * (64 + 64 + 32)
    _assert_untouched()
    if name != "a method of another module":  # which holds the width fast
        isoflop.transform(model, isoflop.SparseWide(0.5), example_inputs=(5, 8))
    _assert_untouched()


def test_hooks_on_all_modules_do_not_run():
    handles = [
        torch_module.register_module_forward_hook(lambda m, a, o: SEEN.append(o)),
        torch_module.register_module_forward_pre_hook(lambda m, a: SEEN.append(a)),
    ]
    try:
        profile(nn.Linear(8, 8), (5, 8))
        _assert_untouched()
        nn.Linear(8, 8)(torch.ones(1, 8))
        assert len(SEEN) == 2
    finally:
        SEEN.clear()
        for handle in handles:
            handle.remove()


def test_hooks_that_are_part_of_the_model_are_part_of_the_count():
    model = nn.Sequential(nn.LSTM(8, 8), nn.Linear(8, 4))
    model[0].register_forward_hook(lambda module, args, output: output[0])
    model[1].register_forward_pre_hook(lambda module, args: (args[0][:, :1],))
    assert profile(model, (5, 3, 8)).by_module()["1"] == 5 * 32


@functools.lru_cache
def _positions(length):
    return torch.arange(length).float()


class Caching(nn.Module):
    """Caches of all sorts, which live longer than a forward pass."""

    tables: ClassVar[dict[int, Any]] = {}
    latest: Any = None

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.own: dict[int, Any] = {}

    @functools.lru_cache  # noqa: B019
    def own_positions(self, length):
        return torch.arange(length).float()

    def forward(self, x):
        length = x.shape[1]
        for tables in (self.tables, self.own, TABLES):
            if length not in tables:
                tables[length] = torch.arange(length).float()
            x = x + tables[length]
        Caching.latest = x
        return self.layer(x + _positions(length) + self.own_positions(length))


@pytest.mark.parametrize("used", [False, True])
def test_caches_hold_no_tensors_without_values(used):
    model = Caching()
    x = torch.ones(5, 8)
    try:
        expected = model(x) if used else None
        profile(model, (5, 8))
        isoflop.network_ends(model, (5, 8))
        if expected is None:
            assert not model.own
            assert not TABLES
            assert not Caching.tables
            assert Caching.latest is None
        else:
            assert torch.equal(model(x), expected)
        assert type(model(x)) is torch.Tensor
    finally:
        TABLES.clear()
        Caching.tables.clear()
        Caching.latest = None
        _positions.cache_clear()
        Caching.own_positions.cache_clear()


def test_iterators_are_not_used_up():
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scales = nn.Linear(8, 8), iter([1.0, 2.0])

        def forward(self, x):
            return self.layer(x) * next(self.scales)

    model = Drawing()
    profile(model, (5, 8))
    assert next(model.scales) == 1.0
