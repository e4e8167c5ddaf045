import importlib
import sys

import pytest
import torch
from torch import nn

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.model_specs import build_model, default_example_shape, example_inputs
from isoflop.optional import require


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("isoflop:resnet18_cifar", (1, 3, 32, 32)),
        ("isoflop:resnet8_digits", (1, 1, 8, 8)),
        ("torchvision:resnet18", (1, 3, 224, 224)),
        ("timm:resnet18", (1, 3, 224, 224)),
        ("timm:botnet26t_256", (1, 3, 256, 256)),
    ],
)
def test_build_on_meta_and_default_shape(spec, shape):
    model = build_model(spec, num_classes=11, meta=True)
    assert all(p.is_meta for p in model.parameters())
    assert default_example_shape(spec) == default_example_shape(spec, model) == shape
    assert list(model.parameters())[-1].shape[0] == 11
    assert example_inputs(spec, shape, meta=True).shape == shape


def test_constructors_that_need_values_are_given_them():
    model = build_model("torchvision:regnet_y_400mf", num_classes=3, meta=True)
    assert model.get_parameter("fc.weight").shape == (3, 440)


def test_default_number_of_classes_is_the_models_own():
    assert build_model("torchvision:resnet18", meta=True).get_submodule("fc").weight.shape == (
        1000,
        512,
    )


def test_options_reach_the_model():
    model = build_model("isoflop:resnet8_digits", in_channels=2, base_width=4)
    assert model(torch.randn(2, 2, 8, 8)).shape == (2, 10)
    model = build_model("timm:resnet18", in_channels=1, meta=True)
    assert model.get_parameter("conv1.weight").shape[1] == 1


def test_sizes_of_language_models():
    model = build_model("isoflop:gpt_mini", base_width=64, vocab_size=30, context=8)
    assert model(torch.zeros(2, 8, dtype=torch.long)).logits.shape == (2, 8, 30)
    assert model.get_submodule("transformer.h.0.attn").num_heads == 2
    model = build_model("hf:gpt2", vocab_size=30, context=8, meta=True)
    assert model.get_parameter("transformer.wpe.weight").shape == (8, 768)
    with pytest.raises(IsoflopError, match="'timm:resnet18' does not take context"):
        build_model("timm:resnet18", context=8)
    with pytest.raises(IsoflopError, match="multiple of 32, not 16"):
        build_model("isoflop:gpt_mini", base_width=16)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvision_models_that_warn_unless_told(name):
    build_model(f"torchvision:{name}", meta=True)


def test_torchvision_detection_models_download_no_backbone():
    build_model("torchvision:retinanet_resnet50_fpn", meta=True)


@pytest.mark.parametrize(
    ("spec", "known"),
    [
        ("resnet18_cifar", "isoflop:resnet18_cifar"),
        ("isoflop:resnet19_cifar", "resnet18_cifar"),
        ("timm:resnet18x", "resnet18"),
        ("torchvision:resnet19", "resnet18"),
        ("no.such.module:f", "package.module:function"),
        ("", "timm:NAME"),
        ("timm:", "timm:NAME"),
    ],
)
def test_unknown_names_list_known_ones(spec, known):
    with pytest.raises(UnknownNameError, match=known):
        build_model(spec)


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet18"])
def test_option_that_a_library_lacks(spec):
    with pytest.raises(IsoflopError, match="does not take base_width"):
        build_model(spec, base_width=4)


def test_function_of_a_user(user_module):
    model = build_model(f"{user_module}:mlp", num_classes=5)
    assert isinstance(model, nn.Sequential)
    assert model[-1].out_features == 5
    with pytest.raises(IsoflopError, match="--input"):
        default_example_shape(f"{user_module}:mlp", model)
    with pytest.raises(IsoflopError, match="does not take num_classes"):
        build_model(f"{user_module}:fixed", num_classes=5)
    with pytest.raises(IsoflopError, match=r"not a torch\.nn\.Module"):
        build_model(f"{user_module}:nothing")
    with pytest.raises(UnknownNameError, match="mlp"):
        build_model(f"{user_module}:mpl")


def test_error_inside_a_users_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        build_model("broken_module:f")


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [
        ("timm", "vision", r"pip install 'isoflop\[vision\]'"),
        ("accelerate", "train", r"pip install 'isoflop\[train\]'"),
        ("transformers", "text", r"pip install 'isoflop\[text\]'"),
        ("einops", None, "pip install einops"),
    ],
)
def test_missing_library_says_what_to_install(monkeypatch, module, extra, command):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(IsoflopError, match=command):
        require(module, extra)


def test_hf_needs_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(IsoflopError, match=r"pip install 'isoflop\[text\]'"):
        build_model("hf:gpt2")
    assert default_example_shape("hf:gpt2") == (1, 128)
    assert example_inputs("hf:gpt2", (1, 128)).dtype == torch.long


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("TIMM:ResNet18", "timm:resnet18"),
        ("Torchvision:ResNet18", "torchvision:resnet18"),
        ("isoflop:ResNet18-CIFAR", "isoflop:resnet18_cifar"),
    ],
)
def test_case_makes_no_difference(spec, same):
    sizes = [[p.shape for p in build_model(s, meta=True).parameters()] for s in (spec, same)]
    assert sizes[0] == sizes[1]
    assert default_example_shape(spec) == default_example_shape(same)


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("timm:resnett18", "resnet18"),
        ("torchvision:resnet1", "resnet1"),
        ("isoflop:resnet18_cifr", "resnet18_cifar"),
        ("torchvison:resnet18", "torchvision"),
        ("ResNet18_CIFAR", "isoflop:resnet18_cifar"),
    ],
)
def test_near_misses_get_a_hint(spec, meant):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{meant}"):
        build_model(spec, meta=True)
