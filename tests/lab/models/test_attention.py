import pytest
import torch

from isoflop.errors import InputError, IsoflopError
from isoflop.lab.models import PixelAttention


def slow_attention(module, x):
    """Attention of one image in loops, straight from the definition."""
    width, height, breadth = x.shape
    size = width // module.heads
    q, k, v = (
        torch.einsum("oi,ihw->ohw", layer.weight[:, :, 0, 0], x)
        for layer in (module.query, module.key, module.value)
    )
    out = torch.zeros_like(x)
    pixels = [(row, column) for row in range(height) for column in range(breadth)]
    for head in range(module.heads):
        part = slice(head * size, (head + 1) * size)
        for y, x_ in pixels:
            logits = []
            for row, column in pixels:
                position = module.rows[row - y + height - 1]
                position = position + module.columns[column - x_ + breadth - 1]
                logits.append(q[part, y, x_] @ (k[part, row, column] + position) * size**-0.5)
            weights = torch.stack(logits).softmax(0)
            values = torch.stack([v[part, row, column] for row, column in pixels])
            out[part, y, x_] = weights @ values
    return out


@pytest.fixture
def module():
    torch.manual_seed(0)
    return PixelAttention(width=12, height=3, breadth=4, heads=2).double()


@torch.no_grad()
def test_attention_is_its_definition(module):
    x = torch.randn(2, 12, 3, 4, dtype=torch.double)
    expected = torch.stack([slow_attention(module, image) for image in x])
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), expected)


@torch.no_grad()
def test_position_logits_in_loops(module):
    q = torch.randn(1, 2, 3, 4, 6, dtype=torch.double)
    logits = module.position_logits(q).reshape(2, 3, 4, 3, 4)
    for head, y, x, row, column in torch.cartesian_prod(*map(torch.arange, (2, 3, 4, 3, 4))):
        position = module.rows[row - y + 2] + module.columns[column - x + 3]
        torch.testing.assert_close(logits[head, y, x, row, column], q[0, head, y, x] @ position)


def test_mixed_precision(module):
    module.float()
    x = torch.randn(2, 12, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), module(x), atol=0.05, rtol=0.05)


def test_gradients(module):
    x = torch.randn(1, 12, 3, 4, dtype=torch.double, requires_grad=True)
    tensors = (x, *module.parameters())
    names = [name for name, _ in module.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


def test_initial_scale():
    torch.manual_seed(0)
    module = PixelAttention(width=256, height=14, breadth=14)
    assert module.rows.shape == module.columns.shape == (27, 64)
    for weight, std in ((module.query.weight, 256**-0.5), (module.rows, 64**-0.5)):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    query = module.query.weight.clone()
    module.rows.data.zero_()
    module.reset_parameters()
    assert module.rows.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert torch.equal(module.query.weight, query)


def test_other_map_size_is_an_error(module):
    with pytest.raises(InputError, match="3×4 pixels, but got 4×3"):
        module(torch.zeros(1, 12, 4, 3, dtype=torch.double))


def test_heads_must_divide_the_width():
    with pytest.raises(IsoflopError, match="10 must be a multiple of the 4 heads"):
        PixelAttention(10, 4, 4)
