"""`python -m isoflop.lab.cli`, as torchrun starts it."""

from isoflop.lab.cli import main

main()
