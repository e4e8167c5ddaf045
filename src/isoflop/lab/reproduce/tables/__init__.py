"""The tables and figures of the paper, a file each; importing this registers them."""

# In the order of the paper, in which they are listed.
# isort: off
from isoflop.lab.reproduce.tables import (  # noqa: F401
    table2,
    table4,
    table5,
    table6,
    table7,
    table8,
    table9,
    table10,
    table11,
    table12,
    table13,
    table14,
    table15,
    figure1,
    figure3,
    figure4,
    figure5,
    figure6,
    figure7,
)
