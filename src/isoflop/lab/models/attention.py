"""Self-attention over the pixels of a feature map, as in BoTNet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import InputError, IsoflopError


class PixelAttention(nn.Module):
    """Multi-head self-attention over all pixels, with learned 2D relative positions.

    The logit of a query pixel and a key pixel is `q·k + q·(r_h + r_w)` (Srinivas et al. 2021,
    figure 4), where q is scaled by `head_dim ** -0.5`, and r_h and r_w belong to how far the key is
    below and to the right of the query. The number of heads is fixed; their size follows from the
    weights, so that the module can be widened.

    Args:
        width: Channels of input and output.
        height: Height of the feature map in pixels.
        breadth: Breadth of the feature map in pixels.
        heads: Attention heads; must divide `width`.

    Attributes:
        rows: Embeddings of the vertical offsets, `[2 * height - 1, head_dim]`.
        columns: Embeddings of the horizontal offsets, `[2 * breadth - 1, head_dim]`.
    """

    def __init__(self, width: int, height: int, breadth: int, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise IsoflopError(f"The width {width} must be a multiple of the {heads} heads.")
        self.heads = heads
        self.query = nn.Conv2d(width, width, 1, bias=False)
        self.key = nn.Conv2d(width, width, 1, bias=False)
        self.value = nn.Conv2d(width, width, 1, bias=False)
        self.rows = nn.Parameter(torch.empty(2 * height - 1, width // heads))
        self.columns = nn.Parameter(torch.empty(2 * breadth - 1, width // heads))
        for projection in (self.query, self.key, self.value):
            nn.init.normal_(projection.weight, std=width**-0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embeddings of the offsets anew."""
        for table in (self.rows, self.columns):
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from every pixel to every pixel.

        Args:
            x: Feature map, `[batch, width, height, breadth]`.

        Returns:
            The heads' outputs, concatenated, of the shape of `x`.

        Raises:
            InputError: The feature map is not of the size that the module was made for.
        """
        height, breadth = x.shape[-2:]
        if self.rows.shape[0] != 2 * height - 1 or self.columns.shape[0] != 2 * breadth - 1:
            raise InputError(
                f"This attention knows positions of {(self.rows.shape[0] + 1) // 2}×"
                f"{(self.columns.shape[0] + 1) // 2} pixels, but got {height}×{breadth}: build the "
                "model for the image size that it gets."
            )
        q, k, v = (self._split_heads(f(x)) for f in (self.query, self.key, self.value))
        q = q * q.shape[-1] ** -0.5
        positions = self.position_logits(q.unflatten(2, (height, breadth)))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=positions, scale=1.0)
        return out.transpose(2, 3).flatten(1, 2).unflatten(2, (height, breadth))

    def _split_heads(self, x: Tensor) -> Tensor:
        """Turn `[batch, width, height, breadth]` into `[batch, heads, pixels, head_dim]`."""
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)

    def position_logits(self, q: Tensor) -> Tensor:
        """Return `q·(r_h + r_w)` of every query and key.

        Args:
            q: Scaled queries, `[batch, heads, height, breadth, head_dim]`.

        Returns:
            The logits, `[batch, heads, pixels, pixels]`.
        """
        by_row = torch.einsum("nhyxd,ydr->nhyxr", q, _by_query(self.rows))
        by_column = torch.einsum("nhyxd,xdc->nhyxc", q, _by_query(self.columns))
        logits = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)  # [n, h, y, x, r, c]
        return logits.flatten(4, 5).flatten(2, 3)


def _by_query(table: Tensor) -> Tensor:
    """Arrange a table of relative positions by query and key.

    Args:
        table: Embedding of each offset from query to key, `[2 * size - 1, head_dim]`.

    Returns:
        `[query, head_dim, key]` with the embedding of `key - query`, which is row
        `key - query + size - 1` of the table: each query sees a window of it.
    """
    size = (table.shape[0] + 1) // 2
    return table.unfold(0, size, 1).flip(0)
