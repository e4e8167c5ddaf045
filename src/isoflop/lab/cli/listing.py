"""The command `isoflop list`."""

import inspect
from dataclasses import dataclass
from typing import Any

from isoflop.lab.cli.output import print_json
from isoflop.text import aligned


@dataclass(kw_only=True)
class List:
    """List transforms, methods, patterns, allocations, schedules, recipes, models and tables."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print every registry."""
        tables = {
            noun: {name: _first_line(entry) for name, entry in registry.items()}
            for noun, registry in _registries().items()
        }
        if self.json:
            print_json(tables)
            return
        lines = iter(aligned([row for table in tables.values() for row in table.items()], (0, 1)))
        for noun, table in tables.items():
            print(noun)
            for _ in table:
                print(f"  {next(lines)}")


def _registries() -> dict[str, Any]:
    import isoflop.methods  # noqa: F401  (registers the methods)
    from isoflop.lab.recipes import RECIPES
    from isoflop.lab.reproduce import TABLES
    from isoflop.methods.base import METHODS
    from isoflop.methods.schedules import SCHEDULES
    from isoflop.model_registry import MODELS
    from isoflop.patterns import PATTERNS
    from isoflop.sparsity.allocation import ALLOCATIONS
    from isoflop.transforms import TRANSFORMS

    return {
        "transforms": TRANSFORMS,
        "methods": METHODS,
        "patterns": PATTERNS,
        "allocations": ALLOCATIONS,
        "schedules": SCHEDULES,
        "recipes": RECIPES,
        "models": MODELS,
        "tables": TABLES,
    }


def _first_line(entry: object) -> str:
    return (inspect.getdoc(entry) or "").partition("\n")[0]
