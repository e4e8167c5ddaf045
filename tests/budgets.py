"""The arguments of `sparsify`, from flat options such as tests are parametrised with."""

from typing import Any

from torch import nn

import isoflop

_OF_THE_PLAN = ("allocation", "dense_ends", "exclude", "example_inputs")
_OF_THE_SCORING = ("batches", "loss", "example_inputs")


def sparsify_arguments(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Return arguments of `sparsify` for this model.

    Args:
        model: The model.
        options: Arguments of `sparsify`; in place of the budget, one of `plan`, `masks` and `sparsity`
            and the options of `isoflop.plain_plan`; in place of the scoring, the fields of
            `isoflop.ScoringData`.
    """
    scoring = {name: options[name] for name in _OF_THE_SCORING if name in options}
    if scoring:
        options["scoring"] = isoflop.ScoringData(**scoring)
    plain = {name: options.pop(name) for name in _OF_THE_PLAN if name in options}
    for name in _OF_THE_SCORING:
        options.pop(name, None)
    plan, masks, sparsity = (options.pop(name, None) for name in ("plan", "masks", "sparsity"))
    if masks is not None:
        budget = masks
    elif plan is None:
        budget = isoflop.plain_plan(model, sparsity, **plain)
    else:
        budget = isoflop.reallocate(plan, plain["allocation"]) if "allocation" in plain else plan
    return {"budget": budget, **options}
