"""What the name of an integer attribute tells: whether it is a width, or a number of parts.

Equations decide which dimensions move together (see `isoflop.widths`). Names only decide which
integers take part in them:

1. An integer named like a width, such as ``embed_dim`` or ``num_channels``, takes part whatever its
   value is.
2. Any other integer takes part if it equals the size of a dimension of a parameter, unless it is
   named like a count, such as ``num_heads`` or ``patch_size``.

An integer that takes part changes only if an equation ties it to a width of a parameter. A width that
neither rule finds is told by `isoflop.register_widening_rule`.
"""

import re

_WIDTH = re.compile(
    r"(dim|dims|features|channels|chs|planes|hidden|hidden_size|(head|normalized)_(size|shape)"
    r"|embed|embd|width|d_model|units)$"
    r"|^(dim|d)_|channels|chs"
)

_COUNT = re.compile(
    r"(heads?|groups?|layers?|blocks?|depth|experts?|stages?|chunks?|branches|scales?|"
    r"window\w*|patch\w*|partition\w*|kernel\w*|stride\w*|pad|dilation\w*|grid\w*|img\w*|image\w*|area|"
    r"resolution|vocab\w*|class\w*|labels?|top_?k|length|len|seq\w*|positions?|\w*tokens?|quer(y|ies)|"
    r"buckets?|distance|ratio|idx|index|id|reduction|radix|order|ndim|cardinality|axis)_?\d*$"
    r"|^(num|n|nb|max|min|block|chunk)_"
)


def is_width_name(name: str) -> bool:
    """Return whether an integer of that name is a width: rule 1."""
    return _WIDTH.search(name) is not None


def is_count_name(name: str) -> bool:
    """Return whether an integer of that name is a number of parts, of pixels or of tokens: rule 2."""
    return _COUNT.search(name) is not None
