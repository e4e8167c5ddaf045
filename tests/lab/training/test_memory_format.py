import subprocess
import sys

import pytest
import torch
from torch import nn

import isoflop
from isoflop.lab.training import setup, train
from isoflop.lab.training.memory_format import use_fast_layout
from isoflop.model_specs import build_model


@pytest.mark.parametrize(("width", "outermost"), [(4, 2), (8, 1), (16, 0)])
def test_channels_are_innermost_unless_that_would_crash(width, outermost):
    torch.manual_seed(0)
    model = build_model("isoflop:resnet18_cifar", 3, base_width=width).eval()
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    expected = model(x)
    use_fast_layout(model)
    seen = []

    def see(layer, inputs, output):
        assert output.is_contiguous(memory_format=torch.channels_last)
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(see)
    torch.testing.assert_close(model(x), expected)
    assert [len(seen), seen.count(False)] == [20, outermost]


def test_narrow_shortcuts_do_not_crash():
    # In a process of its own, since what is tested would end it.
    code = (
        "import torch; from torch import nn\n"
        "from isoflop.lab.training.memory_format import use_fast_layout\n"
        "model = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2))\n"
        "use_fast_layout(model)\n"
        "for _ in range(20):\n"
        "    x = torch.randn(16, 8, 64, 64).to(memory_format=torch.channels_last)\n"
        "    model(x).square().mean().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_are_scored_before_the_channels_move_inside(monkeypatch, tiny_recipe, tmp_path):
    """Methods such as SNIP compute gradients while `sparsify` runs, where nothing has hooks yet."""
    innermost = []
    real = setup.sparsify

    def sparsify(model, *args, **options):
        innermost.extend(
            layer.weight.stride(1) == 1
            for layer in model.modules()
            if isinstance(layer, nn.Conv2d)
            and layer.in_channels > 1
            and layer.kernel_size != (1, 1)
        )
        return real(model, *args, **options)

    monkeypatch.setattr(setup, "sparsify", sparsify)
    wide = isoflop.SparseWide(sparsity=0.5)
    recipe = tiny_recipe.replace(epochs=1)
    train(recipe, tmp_path, transform=wide, method="snip", quiet=True)
    assert innermost
    assert not any(innermost)
