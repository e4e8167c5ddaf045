import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from isoflop.errors import IsoflopError
from isoflop.model_registry import MODELS, ModelEntry
from isoflop.model_specs import build_model, default_example_shape, example_inputs

PAPER = {
    "resnet18_cifar",
    "resnet34_cifar",
    "resnet50_cifar",
    "mobilenet_v2_cifar",
    "mobilevit_s_cifar",
    "botnet50_cifar",
    "resnet18",
    "resnet34",
    "resnet50",
    "botnet50",
    "gpt3_small",
    "gpt3_20b",
    "retinanet_resnet18",
    "deeplabv3plus_resnet18",
}


def test_the_papers_networks_are_there():
    assert set(MODELS.names()) >= PAPER


@pytest.mark.parametrize("name", [n for n, e in MODELS.items() if e.kind == "image"])
def test_every_image_model_takes_its_example_inputs(name):
    spec = f"isoflop:{name}"
    inputs = example_inputs(spec, default_example_shape(spec), meta=True)
    assert inputs.is_meta
    assert inputs.shape == (1, *MODELS.get(name).input_shape)
    build_model(spec, meta=True).eval()(inputs)


@pytest.mark.parametrize("name", MODELS.names())
def test_every_model_says_what_it_is_and_takes(name):
    entry = MODELS.get(name)
    assert (inspect.getdoc(entry) or "").partition("\n")[0].endswith(".")
    options = inspect.signature(entry).parameters
    needed = {"num_classes", "in_channels"} if entry.kind == "image" else {"vocab_size", "context"}
    assert options.keys() >= needed
    assert all(p.default is not p.empty for p in options.values())


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("gpt3_small", "num_classes"),
        ("gpt3_small", "in_channels"),
        ("gpt3_small", "base_width"),
        ("resnet50", "base_width"),
        ("mobilevit_s_cifar", "base_width"),
        ("retinanet_resnet18", "base_width"),
    ],
)
def test_option_without_a_meaning(name, option):
    options: dict[str, Any] = {option: 8}
    with pytest.raises(IsoflopError, match=f"'isoflop:{name}' does not take {option}"):
        build_model(f"isoflop:{name}", **options)


def test_kind_of_the_example_inputs():
    assert example_inputs("isoflop:gpt3_small", (1, 4)).dtype == torch.long
    assert example_inputs("isoflop:resnet8_digits", (1, 1, 8, 8)).dtype == torch.float


def test_an_entry_builds_as_its_builder_does():
    def linear(size: int = 3) -> nn.Linear:
        """A linear layer."""
        return nn.Linear(size, size)

    entry = ModelEntry(linear, input_shape=(3,))
    assert entry.__doc__ == "A linear layer."
    assert inspect.signature(entry) == inspect.signature(linear)
    assert entry(4).weight.shape == entry(size=4).weight.shape == (4, 4)
    assert entry.kind == "image"


def test_import_needs_no_optional_library():
    code = (
        "import sys\n"
        "for name in ('torchvision', 'timm', 'transformers', 'segmentation_models_pytorch'):\n"
        "    sys.modules[name] = None\n"
        "from isoflop.model_specs import build_model\n"
        "build_model('isoflop:botnet50_cifar', base_width=4)\n"
        "for name, extra in (('resnet18', 'vision'), ('mobilenet_v2_cifar', 'vision'),\n"
        "                    ('retinanet_resnet18', 'vision'), ('gpt3_small', 'text'),\n"
        "                    ('deeplabv3plus_resnet18', 'vision')):\n"
        "    try:\n"
        "        build_model(f'isoflop:{name}')\n"
        "    except ValueError as error:\n"
        "        assert f\"pip install 'isoflop[{extra}]'\" in str(error), error\n"
        "    else:\n"
        "        raise AssertionError(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
