"""The reference of the methods in Markdown, from their docstrings: `docs/methods.md`.

Written by ``python -m tools.methods_reference > docs/methods.md``.
"""

import dataclasses
import inspect

import isoflop.methods  # noqa: F401  (registers the methods)
from isoflop.methods.base import METHODS, Method

HEADER = """# Methods

Every method by its registered name, with its formula, its differences from the paper, and its cost.
In the cost, f_S and f_D are the FLOPs of a forward pass of the sparse and of the dense network, per
sample; `isoflop.training_flops(plan, method, total_steps)` has the exact figure of a whole
training, and `sparsifier.training_macs()` counts it as it goes. This file is made from the
docstrings by `python -m tools.methods_reference > docs/methods.md`.

| name | class | masks | number of weights | gradient of masked weights |
|---|---|---|---|---|
"""


def markdown() -> str:
    """Return the text of `docs/methods.md`."""
    rows, sections = [], []
    for name, cls in sorted(METHODS.items()):
        rows.append(f"| [`{name}`](#{name}) | `{cls.__name__}` | {' | '.join(_traits(cls))} |\n")
        sections.append(f"\n## {name}\n\n{_text(cls)}\n\n{_options(cls)}\n")
    return HEADER + "".join(rows) + "".join(sections)


def _traits(cls: type[Method]) -> list[str]:
    """Return when the masks change, and what that needs, as the method itself says."""
    method, steps = cls(), 10_000
    changes = sum(method.update_due(t, steps) for t in range(1, steps + 1))
    observed = sum(method.observes(t, steps) for t in range(1, steps + 1))
    often = {0: "fixed", steps: "follow every step"}.get(
        changes, "change every `update_every` steps"
    )
    if not method.masks_weights:
        often = "none"
    elif method.needs:
        often += f", chosen by `{'` and `'.join(method.needs)}`"
    seen = "never" if not observed else "in every step" if observed > steps / 2 else "at updates"
    return [often, "falls" if method.pruning_schedule is not None else "constant", seen]


def _text(cls: type[Method]) -> str:
    """Return the docstring without the list of its attributes, which the table of options has."""
    return (inspect.getdoc(cls) or "").partition("\nAttributes:\n")[0].strip()


def _options(cls: type[Method]) -> str:
    """Return the constructor call with all defaults."""
    fields = dataclasses.fields(cls)
    values = ", ".join(f"{field.name}={field.default!r}" for field in fields)
    return f"`isoflop.{cls.__name__}({values})`"


if __name__ == "__main__":
    print(markdown(), end="")
