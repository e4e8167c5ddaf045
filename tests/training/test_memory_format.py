import subprocess
import sys

import pytest
import torch
from torch import nn

from isoflop.models import build_model
from isoflop.training.memory_format import use_fast_layout

CPU = torch.device("cpu")


@pytest.mark.parametrize(("width", "innermost"), [(8, False), (16, True)])
def test_channels_are_innermost_unless_that_would_crash(width, innermost):
    torch.manual_seed(0)
    model = build_model("isoflop:resnet18_cifar", 3, base_width=width).eval()
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    expected = model(x)
    use_fast_layout(model, CPU)
    seen = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.testing.assert_close(model(x), expected)
    assert [x.stride(1) == 1 for x in seen] == [innermost] * 20


def test_narrow_shortcuts_do_not_crash():
    # In a process of its own, since what is tested would end it.
    code = (
        "import torch; from torch import nn\n"
        "from isoflop.training.memory_format import use_fast_layout\n"
        "model = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2))\n"
        "use_fast_layout(model, torch.device('cpu'))\n"
        "for _ in range(20):\n"
        "    x = torch.randn(16, 8, 64, 64).to(memory_format=torch.channels_last)\n"
        "    model(x).square().mean().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
