"""Files have what `state_dict` gives, whatever modules and hooks make of it."""

import copy
from collections import OrderedDict, defaultdict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

import isoflop
from isoflop.errors import IsoflopError, ModelFileError
from isoflop.masks import named_masks, set_mask


class OwnTensor(torch.Tensor):
    pass


class Extra(nn.Linear):
    value = None

    def get_extra_state(self):
        return self.value

    def set_extra_state(self, state):
        self.value = state


class Renamed(nn.Linear):
    """Saves twice the weight by another name."""

    def __init__(self):
        super().__init__(4, 4)
        self._register_state_dict_hook(self.double)
        self._register_load_state_dict_pre_hook(self.halve)

    @staticmethod
    def double(_module, state, prefix, _metadata):
        state[prefix + "twice"] = state.pop(prefix + "weight") * 2

    @staticmethod
    def halve(state, prefix, *_):
        state[prefix + "weight"] = state.pop(prefix + "twice") / 2


class Growing(nn.Module):
    """Takes up a buffer of any length."""

    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.zeros(0, 3))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.queue = torch.zeros_like(state_dict[prefix + "queue"])
        super()._load_from_state_dict(state_dict, prefix, *args)


def with_buffer(make):
    def build():
        layer = nn.Linear(4, 4)
        layer.register_buffer("own", make())
        return layer

    return build


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def masked_and_renamed():
    layer = Renamed()
    set_mask(layer, "weight", torch.eye(4, dtype=torch.bool))
    return layer


def with_named(name):
    def build():
        layer = nn.Linear(4, 4)
        layer._buffers[name] = torch.rand(3)
        return layer

    return build


def with_masked_name():
    layer = with_named("weight.values")()
    set_mask(layer, "weight", torch.eye(4, dtype=torch.bool))
    return layer


def masked_long_complex():
    layer = nn.Linear(4, 4, dtype=torch.complex128)
    set_mask(layer, "weight", torch.eye(4, dtype=torch.bool))
    return layer


MODELS = {
    "renamed": Renamed,
    "renamed and masked": masked_and_renamed,
    "coordinates": with_buffer(lambda: torch.eye(4).to_sparse()),
    "rows": with_buffer(lambda: torch.eye(4).to_sparse_csr()),
    "none": with_buffer(lambda: None),
    "scalar": with_buffer(lambda: torch.rand(())),
    "empty": with_buffer(lambda: torch.zeros(0, 3)),
    "complex": with_buffer(lambda: torch.randn(3, dtype=torch.complex64).conj()),
    "long complex": with_buffer(lambda: torch.randn(3, dtype=torch.complex128)),
    "a long complex": with_buffer(lambda: torch.randn((), dtype=torch.complex128)),
    "eight bits": with_buffer(lambda: torch.ones(4).to(torch.float8_e4m3fn)),
    "flags": with_buffer(lambda: torch.rand(4) < 0.5),
    "tied": tied,
    "named as the header": with_named("__metadata__"),
    "long complex and masked": masked_long_complex,
    "an own _orig_mod": lambda: nn.Sequential(
        OrderedDict(_orig_mod=nn.Linear(4, 4), a=nn.Linear(4, 4))
    ),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
}


def same(one, two):
    if isinstance(one, torch.Tensor) and one.layout is not torch.strided:
        return one.layout is two.layout and torch.equal(one.to_dense(), two.to_dense())
    if isinstance(one, torch.Tensor):
        kind = torch.complex128 if one.is_complex() else torch.float64
        return one.dtype is two.dtype and torch.equal(one.to(kind), two.to(kind))
    return repr(one) == repr(two)


@pytest.mark.filterwarnings(
    "ignore:Sparse CSR", "ignore:Casting complex values to real", "ignore:Complex modules"
)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_states_come_back(make, tmp_path):
    torch.manual_seed(0)
    model = make()
    before = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in model.state_dict().items()
    }
    isoflop.save(model, tmp_path / "m")
    torch.manual_seed(1)
    loaded, _ = isoflop.load(tmp_path / "m", make())
    for state in (loaded.state_dict(), model.state_dict()):
        assert state.keys() == before.keys()
        assert all(same(state[name], before[name]) for name in before)


def test_modules_that_load_other_shapes_may(tmp_path):
    model = Growing()
    model.queue = torch.ones(5, 3)
    isoflop.save(model, tmp_path / "m")
    loaded, _ = isoflop.load(tmp_path / "m", Growing())
    assert torch.equal(loaded.get_buffer("queue"), model.queue)


STATES = [
    *(3, 2.5, float("nan"), True, None, "text", b"\x00\xff", [1, (2, "3")], {1: {"a": None}}),
    torch.arange(3),
    {"mean": torch.ones(2), "more": [torch.zeros((), dtype=torch.complex128)]},
    {"a.b": torch.ones(2), "a": {"b": torch.zeros(3)}},
]


@pytest.mark.parametrize("state", STATES, ids=repr)
def test_extra_state_comes_back(state, tmp_path):
    model = nn.Sequential(Extra(4, 4), Extra(4, 4))
    model[1].value = state
    isoflop.save(model, tmp_path / "m")
    loaded = nn.Sequential(Extra(4, 4), Extra(4, 4))
    isoflop.load(tmp_path / "m", loaded)
    assert repr(loaded[1].value) == repr(state)
    assert loaded[0].value is None


def test_ordered_dicts_come_back_as_dicts(tmp_path):
    model = Extra(2, 2)
    model.value = OrderedDict(a=1)
    isoflop.save(model, tmp_path / "m")
    loaded = Extra(2, 2)
    isoflop.load(tmp_path / "m", loaded)
    assert loaded.value == {"a": 1}


def holding_itself():
    made = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    "state",
    [
        *(object(), {1, 2}, torch.float32, {(1, 2): 3}, [len], defaultdict(list, a=[1])),
        *(holding_itself(), torch.ones(2).as_subclass(OwnTensor)),
    ],
    ids=["object", "set", "type", "key", "function", "defaultdict", "itself", "own tensor"],
)
def test_what_would_need_code_is_refused_by_name(state, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), Extra(4, 4))
    model[1].value = state
    with pytest.raises(IsoflopError, match=r"'1\._extra_state' .* `get_extra_state`"):
        isoflop.save(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            with_buffer(lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
            "quant",
        ),
        (
            with_buffer(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
            "a nested",
        ),
        (with_buffer(lambda: torch.ones(3, device="meta")), "on the meta device"),
        (with_buffer(lambda: torch.ones(3).to_mkldnn()), "of layout torch._mkldnn"),
        (lambda: nn.LazyLinear(4), "a lazy module"),
        (with_masked_name, "would be called 'weight.values'"),
        (lambda: {"weight": torch.ones(3)}, "must be a torch.nn.Module, not dict"),
        (lambda: "timm:resnet18", "build_model"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:.*quantize_per_tensor")
def test_what_a_file_cannot_hold_is_refused_by_name(make, message, tmp_path):
    with pytest.raises(IsoflopError, match=message):
        isoflop.save(make(), tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": {"layers": []}}, "plan must be a Plan"),
        ({"source": 5}, "source must be a ModelSource"),
        ({"source": "nonsense"}, "names no model"),
    ],
)
def test_mistakes_in_what_goes_with_a_model(options, message, tmp_path):
    with pytest.raises(IsoflopError, match=message):
        isoflop.save(nn.Linear(4, 4), tmp_path / "m", **options)
    assert not list(tmp_path.iterdir())


def test_a_module_that_refuses_leaves_the_model_as_it_was(tmp_path):
    class Stubborn(Extra):
        def set_extra_state(self, state):
            raise RuntimeError("never")

    model = nn.Sequential(nn.Linear(4, 4), Extra(4, 4))
    set_mask(model[0], "weight", torch.eye(4, dtype=torch.bool))
    isoflop.save(model, tmp_path / "m")
    other = nn.Sequential(nn.Linear(4, 4), Stubborn(4, 4))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ModelFileError, match=r"refuses the state .* never"):
        isoflop.load(tmp_path / "m", other)
    assert before.keys() == other.state_dict().keys()
    assert all(same(before[name], value) for name, value in other.state_dict().items())
    assert not list(named_masks(other))


@pytest.mark.parametrize(
    ("saved", "into", "message"),
    [
        (nn.Linear(4, 4, dtype=torch.complex64), nn.Linear(4, 4), "the type torch.complex64"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), tied(), "one with it in the model"),
        (nn.Linear(4, 4), nn.Linear(4, 4, device="meta"), "to_empty"),
        (nn.Linear(4, 4), Extra(4, 4), "_extra_state is missing"),
        (Extra(4, 4), nn.Linear(4, 4), "_extra_state is not in the model"),
        (nn.Linear(4, 4), nn.LazyLinear(4), "Run it once"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_what_does_not_fit_is_refused(saved, into, message, tmp_path):
    isoflop.save(saved, tmp_path / "m")
    before = copy.deepcopy(into.state_dict())
    with pytest.raises(ModelFileError, match=message):
        isoflop.load(tmp_path / "m", into)
    for name, value in into.state_dict().items():
        unset = value is None or nn.parameter.is_lazy(value) or value.is_meta
        assert unset or torch.equal(value, before[name])  # pyright: ignore


def test_names_are_those_inside_of_wrappers(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    model = build()
    set_mask(model[0], "weight", torch.eye(4, dtype=torch.bool))
    partly = copy.deepcopy(model)
    partly[1] = torch.compile(partly[1])  # pyright: ignore
    saved = [model, torch.compile(model), nn.DataParallel(model), partly]
    for wrapped in saved:
        isoflop.save(wrapped, tmp_path / "m")  # pyright: ignore
        for make in (lambda m: m, torch.compile, nn.DataParallel):
            plain = build()
            isoflop.load(tmp_path / "m", make(plain))  # pyright: ignore
            assert same(plain.state_dict()["0.weight_mask"], torch.eye(4, dtype=torch.bool))
            assert same(plain.state_dict()["1.weight"], model[1].state_dict()["weight"])


def test_averages_are_saved_once_their_masks_are_applied(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    set_mask(model[0], "weight", torch.eye(4, dtype=torch.bool))
    averaged = AveragedModel(model)
    with torch.no_grad():
        averaged.get_parameter("module.0.weight").fill_(1)
    with pytest.raises(IsoflopError, match="apply_masks"):
        isoflop.save(averaged, tmp_path / "m")
    isoflop.apply_masks(averaged)
    isoflop.save(averaged, tmp_path / "m")
    loaded, _ = isoflop.load(tmp_path / "m", AveragedModel(nn.Sequential(nn.Linear(4, 4))))
    assert torch.equal(loaded.get_parameter("module.0.weight"), torch.eye(4))


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_a_model_that_was_not_transformed_is_built_anew_with_its_plan(storage, tmp_path):
    source = isoflop.ModelSource(spec="isoflop:resnet18_cifar", num_classes=10, base_width=4)
    model = source.build(None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        "rigl",
        isoflop.plain_plan(model, 0.8, example_inputs=(1, 3, 32, 32)),
        total_steps=10,
        storage=storage,
    )
    isoflop.save(model, tmp_path / "m", plan=sparsifier.plan, source=source)
    loaded, plan = isoflop.load(tmp_path / "m")
    assert plan == sparsifier.plan
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
