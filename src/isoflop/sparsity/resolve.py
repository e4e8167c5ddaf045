"""From a budget, in whichever form it is passed to `sparsify`, to the weights to mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isoflop.errors import IsoflopError
from isoflop.flops.trace import trace_for_budget
from isoflop.methods.base import Method
from isoflop.plan import Plan
from isoflop.sparsity.budget_spec import whole_prices
from isoflop.sparsity.plain import check_sparsity, excluded_paths, plain_plan, plan_of
from isoflop.sparsity.targets import MaskedTarget, from_masks, from_plan
from isoflop.surgery import ExampleInputs

Budget = Plan | float | Mapping[str, Tensor]
"""A plan, the plain sparsity, or the masks by parameter name."""


@dataclass(frozen=True, kw_only=True)
class ResolvedBudget:
    """What a budget says of a model.

    Attributes:
        targets: The weights to mask, with their numbers of non-zeros.
        prices: What a weight of each costs.
        plan: The plan, whose MACs may not be counted.
        masks: The masks to begin with, if they were given.
    """

    targets: list[MaskedTarget]
    prices: list[int]
    plan: Plan
    masks: Mapping[str, Tensor] | None = None

    @classmethod
    def of(
        cls,
        budget: Budget,
        model: nn.Module,
        method: Method,
        example_inputs: ExampleInputs | None,
        exclude: Sequence[str],
    ) -> "ResolvedBudget":
        """Resolve a budget that `check_budget` has let pass."""
        if isinstance(budget, Mapping):
            targets, masks = from_masks(model, budget), budget
        else:
            targets, masks = [], None
        if isinstance(budget, Plan):
            plan = budget
            plan.check(model)
        elif masks is None and method.masks_weights:
            assert not isinstance(budget, Mapping)
            plan = plain_plan(model, budget, example_inputs=example_inputs, exclude=exclude)
        else:
            excluded_paths(model, exclude)  # A name that is misspelt is told of.
            found = None if example_inputs is None else trace_for_budget(model, example_inputs)
            plan = plan_of(model, None if found is None else found.table, targets)
        if method.masks_weights and masks is None:
            targets = from_plan(model, plan)
        prices = [1] * len(targets)
        if plan.is_transformed and targets:
            prices = whole_prices([layer.macs_per_weight for layer in plan.sparse_layers])
        return cls(targets=targets, prices=prices, plan=plan, masks=masks)


def check_budget(method: Method, budget: Any, exclude: Sequence[str]) -> None:
    """Raise unless the budget is valid, and one that the method can begin with."""
    if isinstance(budget, Mapping):
        random = type(method).initial_masks is Method.initial_masks
        if not method.masks_weights or not random or method.pruning_schedule is not None:
            raise IsoflopError(
                f"The method {method.name!r} chooses its own masks, or none, and cannot begin with "
                "those that are passed. Use one that begins with random masks, such as isoflop.Static() "
                "or isoflop.RigL()."
            )
    elif isinstance(budget, int | float) and not isinstance(budget, bool):
        check_sparsity(budget)
        return
    elif not isinstance(budget, Plan):
        raise IsoflopError(
            "The budget must be a plan, as `isoflop.transform` returns it, a sparsity such as 0.9, or "
            f"masks by parameter name, not {_said(budget)}.{_hint(budget)}"
        )
    if exclude:
        what = "masks, which say" if isinstance(budget, Mapping) else "a plan, which says"
        raise IsoflopError(
            f"exclude cannot be combined with {what} what is sparse. Pass exclude to the transform, or "
            "to `isoflop.plain_plan`, instead."
        )


def _hint(budget: object) -> str:
    if isinstance(budget, tuple) and any(isinstance(part, Plan) for part in budget):
        return " `isoflop.transform` returns the model and the plan: unpack them."
    return " For dense training, pass 0.0." if budget is None else ""


def _said(budget: object) -> str:
    return f"a {type(budget).__name__}" if isinstance(budget, tuple | list) else repr(budget)
