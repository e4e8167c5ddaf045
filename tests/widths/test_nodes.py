"""Symbolic sizes and tensors without values survive all that a forward pass does with them."""

import copy
import gc
import io
import pickle
from typing import Any

import pytest
import torch
import transformers
from tools.zoo.build import inputs_for
from tools.zoo.tiny import tiny_config
from torch import nn

import isoflop
from isoflop.errors import IsoflopError
from isoflop.widths.nodes import Space, expression_of

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "pickle of a nest": lambda value: pickle.loads(pickle.dumps({"sizes": [value]}))["sizes"][0],
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_size_is_the_same_size(how):
    size = Space().symbol(16, "width")
    other = Space().symbol(16, "other")
    again = COPIES[how](size)
    assert expression_of(again) == expression_of(size) != expression_of(other)
    assert isinstance(again, torch.SymInt)
    for number in (size * 0.5, size == 16):
        new = COPIES[how](number)
        assert (type(new), new.node.hint) == (type(number), number.node.hint)


def test_what_outlives_its_trace_is_a_plain_size():
    data = pickle.dumps(Space().symbol(16, "width") * 2)
    gc.collect()
    size = pickle.loads(data)
    assert size == 32
    assert expression_of(size).is_constant


class Copying(nn.Module):
    """Runs what it is given in the middle of its forward pass."""

    def __init__(self, action: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 12)
        self.hidden = nn.Linear(12, 24)
        self.head = nn.Linear(24, 4)
        self.register_buffer("shift", torch.zeros(24))
        self.action = action

    def forward(self, ids):
        x = self.hidden(self.embedding(ids))
        return self.head(self.action(self, ids, x))


def copied_sizes(model, ids, x):
    shape = pickle.loads(pickle.dumps(copy.deepcopy(x.shape)))
    return x.view(copy.deepcopy([shape])[0])


def kept_by_shape(model, ids, x):
    table = {x.shape: x, (x.shape[-1], x.dtype): 1, f"{x.shape[-1]:d}": 2}
    return table[x.shape] * table[x.shape[-1], x.dtype] + table[str(x.shape[-1])]


ACTIONS = {
    "module": lambda model, ids, x: x + copy.deepcopy(model.hidden)(model.embedding(ids)),
    "parameter": lambda model, ids, x: x + copy.deepcopy(model.hidden.bias),
    "detached": lambda model, ids, x: x + copy.deepcopy(model.hidden.bias.detach()),
    "buffer": lambda model, ids, x: x + copy.deepcopy(model.shift),
    "activation": lambda model, ids, x: copy.deepcopy(x.detach()),
    "ids": lambda model, ids, x: x + copy.deepcopy(ids).sum(),
    "state": lambda model, ids, x: x + copy.deepcopy(model.state_dict())["shift"],
    "tied": lambda model, ids, x: x + sum(copy.deepcopy([x.detach()] * 2)),
    "address": lambda model, ids, x: x + x.data_ptr() % 2,
    "sizes": copied_sizes,
    "table": kept_by_shape,
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
@pytest.mark.parametrize("name", ACTIONS)
def test_a_forward_pass_may_copy_what_it_likes(name):
    model = Copying(ACTIONS[name])
    inputs = (torch.arange(12).view(2, 6),)
    plain = isoflop.profile(Copying(lambda model, ids, x: x), inputs).macs
    assert isoflop.profile(model, inputs).macs >= plain
    for _ in range(5):
        wide, _ = isoflop.transform(
            model, isoflop.SparseWide(0.75, dense_ends=False), example_inputs=inputs
        )
    gc.collect()
    assert wide.get_parameter("hidden.weight").shape == (48, 24)
    assert wide(*inputs).shape == (2, 6, 4)


@pytest.mark.parametrize(
    "action",
    [
        lambda model, ids, x: torch.load(save(model.state_dict())),
        lambda model, ids, x: x + x.untyped_storage().clone().nbytes(),
        lambda model, ids, x: x + x.untyped_storage()[0],
        lambda model, ids, x: torch.from_numpy(x.numpy()),
    ],
)
def test_what_needs_memory_is_refused(action):
    inputs = (torch.arange(12).view(2, 6),)
    for _ in range(3):
        with pytest.raises(IsoflopError, match=r"test_nodes\.py"):
            isoflop.transform(Copying(action), isoflop.SparseWide(0.75), example_inputs=inputs)


def save(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


class Config:
    """A configuration as those of transformers, which a module may share with others."""

    model_type = "own"

    def __init__(self, width: int) -> None:
        self.hidden_size = width
        self.scale = width**-0.5

    def to_dict(self):
        return dict(vars(self))


class Shared(Config):
    """One that is never copied."""

    def __deepcopy__(self, memo):
        return self


class Configured(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Linear(6, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, 4)
        self.seen: list[Any] = []

    def forward(self, x):
        config = copy.deepcopy(self.config)
        self.seen.append(config)
        x = self.stem(x).unflatten(-1, (config.hidden_size,))
        return self.head(x * config.scale)


def reachable(value: Any) -> set[int]:
    """Return the ids of all tensors and modules that a value refers to, classes and code left out."""
    seen: set[int] = set()
    waiting, found = [value], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (type, type(gc), type(reachable))):
            continue
        seen.add(id(item))
        if isinstance(item, (torch.Tensor, nn.Module)):
            found.add(id(item))
        waiting += gc.get_referents(item)
    return found


def test_a_configuration_refers_to_no_tensor_and_stays_as_it_was():
    config = Config(16)
    checked = []

    class Checked(Configured):
        def forward(self, x):
            checked.append(
                reachable(vars(self.config)["hidden_size"]) | reachable(self.config.scale)
            )
            return super().forward(x)

    model = Checked(config)
    wide, _ = isoflop.transform(
        model, isoflop.SparseWide(0.75, dense_ends=False), example_inputs=(2, 6)
    )
    assert checked
    assert not any(checked)
    assert vars(config) == {"hidden_size": 16, "scale": 0.25}
    assert type(config.hidden_size) is int
    assert type(config.scale) is float
    assert wide.config.hidden_size == 32  # pyright: ignore[reportAttributeAccessIssue]
    assert wide.config.scale == 32**-0.5  # pyright: ignore[reportAttributeAccessIssue]
    assert not model.seen


def test_a_configuration_that_cannot_be_copied_is_left_alone():
    config = Shared(16)
    with pytest.raises(isoflop.WideningError):
        isoflop.transform(
            Configured(config), isoflop.SparseWide(0.75, dense_ends=False), example_inputs=(2, 6)
        )
    assert vars(config) == {"hidden_size": 16, "scale": 0.25}
    assert type(config.hidden_size) is int


@pytest.mark.parametrize("model_type", ["t5", "bart", "marian", "llama"])
def test_caches_may_copy_the_configuration(model_type):
    config = tiny_config(model_type)
    config.use_cache = True
    kinds = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if config.is_encoder_decoder:
        kinds = transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    model = kinds[type(config)](config)  # pyright: ignore[reportCallIssue]
    inputs = inputs_for(f"transformers:{model_type}", model)
    before = dict(vars(config))
    for _ in range(3):
        wide, plan = isoflop.transform(
            model, isoflop.SparseWide(0.75, dense_ends=False), example_inputs=inputs
        )
        assert plan.unmasked_macs > 2 * plan.dense_macs
    assert vars(config) == before
    assert all(type(value) is type(before[name]) for name, value in vars(config).items())
    wide(**inputs)
