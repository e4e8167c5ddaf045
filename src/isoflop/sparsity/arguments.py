"""Checks of the arguments of `sparsify`, made before anything is changed."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam

from isoflop.budget import TOLERANCE, reallocate
from isoflop.errors import (
    BudgetError,
    IsoflopError,
    NoEffectWarning,
    OptimizerError,
    PatternGapWarning,
    PlanError,
)
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.masks import mask_name, named_masks
from isoflop.methods.base import Method
from isoflop.patterns import PATTERNS, Pattern, parse_pattern
from isoflop.plan import Plan
from isoflop.registry import Registry
from isoflop.sparsity.allocation import ALLOCATIONS, Allocation
from isoflop.sparsity.budget_spec import BudgetSpec
from isoflop.sparsity.guard import is_kept
from isoflop.sparsity.target import some_of
from isoflop.sparsity.targets import MaskedTarget
from isoflop.sparsity.weights.sharding import is_sharded

T = TypeVar("T")

_PATTERN_TOLERANCE = 0.25
"""Largest part of the non-zeros asked for by which those of a pattern may differ."""


def find_instance(registry: Registry[type[T]], base: type[T], value: object) -> T:
    """Return `value`, or a new entry of `registry` if it is a name."""
    if isinstance(value, str):
        return registry.get(value)()
    if isinstance(value, base):
        return value
    known = ", ".join(repr(name) for name in registry.names())
    hint = f" Did you mean {value.__name__}()?" if isinstance(value, type) else ""
    raise IsoflopError(
        f"The {registry.noun} must be a name ({known}) or an instance of {base.__name__}, not "
        f"{value!r}.{hint}"
    )


def find_pattern(value: Pattern | str) -> Pattern:
    """Return `value`, or the pattern that a text such as ``"2:4"`` stands for."""
    return (
        parse_pattern(value) if isinstance(value, str) else find_instance(PATTERNS, Pattern, value)
    )


def check_pattern(budget_spec: BudgetSpec, counts: Sequence[int], plan: Plan | None) -> None:
    """Raise if the pattern keeps far more or fewer weights than asked for; warn of a FLOP gap."""
    wanted = budget_spec.cost([target.nnz for target in budget_spec.targets])
    got = budget_spec.cost(counts)
    if abs(got - wanted) > _PATTERN_TOLERANCE * wanted:
        size = budget_spec.cost(budget_spec.sizes)
        raise BudgetError(
            f"The pattern {budget_spec.pattern} keeps {got / size:.1%} of the weights (by cost) where "
            f"{wanted / size:.1%} are asked for. Use a sparsity of about {1 - got / size:.2f}, or "
            "another pattern."
        )
    if plan is None or not wanted:
        return
    # Costs may be in a multiple of MACs, so only their ratio counts.
    gap = (got / wanted - 1) * sum(x.macs for x in plan.sparse_layers) / plan.dense_macs
    if abs(gap) > TOLERANCE:
        warnings.warn(
            f"The pattern {budget_spec.pattern} cannot make the numbers of non-zeros of the plan: the "
            f"model costs {gap:+.2%} of the dense model's MACs more than planned.",
            PatternGapWarning,
            stacklevel=3,
        )


def find_allocation(value: Allocation | str) -> Allocation:
    """Return `value`, or the allocation of that name."""
    if isinstance(value, str):
        return ALLOCATIONS.get(value)
    if not callable(value):
        known = ", ".join(repr(name) for name in ALLOCATIONS.names())
        raise IsoflopError(
            f"The allocation must be a name ({known}) or a function of shapes and density, not "
            f"{value!r}."
        )
    return value


def with_allocation(plan: Plan, allocation: Allocation | str | None) -> Plan:
    """Return `plan` with its non-zeros spread as `allocation` says, for the same FLOPs."""
    if allocation is None:
        return plan
    function = find_allocation(allocation)
    names = (name for name, known in ALLOCATIONS.items() if known is function)
    name = next(names, getattr(function, "__name__", "custom"))
    return plan if name == plan.allocation else reallocate(plan, function, name)


def check_integer(name: str, value: object, meaning: str) -> None:
    """Raise unless `value` is an integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise IsoflopError(f"{name} must be an integer, {meaning}, not {value!r}.")


def check_total_steps(value: object) -> None:
    """Raise unless `value` is a positive integer."""
    check_integer("total_steps", value, "the optimizer steps of the whole run")
    assert isinstance(value, int)
    if value < 1:
        raise IsoflopError(f"total_steps must be positive, not {value}.")


def check_effect(method: Method, counts: Sequence[int], total_steps: int) -> None:
    """Warn if the masks will never change, though the method is made to change them."""
    if counts and (reason := method.idle(counts, total_steps)):
        warnings.warn(
            f"The method {method.name!r} will never change a mask: {reason}; isoflop.Static() says that "
            "masks are to stay as they are.",
            NoEffectWarning,
            stacklevel=3,
        )


def check_used(
    method: Method,
    plan: Plan | None,
    masks: Mapping[str, Tensor] | None,
    allocation: Allocation | str | None,
    *,
    dense_ends: bool,
) -> None:
    """Raise if an argument is given that has no effect beside the others."""
    source = "a plan" if plan is not None else "masks" if masks is not None else ""
    if source and not dense_ends:
        raise IsoflopError(
            f"dense_ends=False has no effect with {source}, which says itself what is sparse. Leave it "
            "out; with a plan, it is an option of the transform."
        )
    if allocation is None:
        return
    if masks is not None or not method.masks_weights:
        raise IsoflopError(
            f"An allocation has no effect with {'masks' if masks is not None else 'dense training'}. "
            "Leave it out."
        )


def check_needs(method: Method, **given: object) -> None:
    """Raise if arguments are missing that the method's first masks are computed from."""
    examples = {
        "calibration": "calibration=[(inputs, targets)], or a data loader",
        "loss": "loss=F.cross_entropy",
        "example_inputs": "example_inputs=(1, 3, 32, 32)",
    }
    missing = [examples[name] for name in method.needs if given[name] is None]
    if missing:
        raise IsoflopError(
            f"The method {method.name!r} scores weights before training and needs "
            f"{' and '.join(missing)}."
        )
    loss, calibration = given["loss"], given["calibration"]
    if loss is not None and not callable(loss):
        raise IsoflopError(f"loss must be a function of outputs and targets, not {loss!r}.")
    if calibration is not None and not isinstance(calibration, Iterable):
        raise IsoflopError(
            f"calibration must be an iterable of pairs of inputs and targets, not {calibration!r}."
        )


def check_whole(model: nn.Module, method: Method, *, traced: bool) -> None:
    """Raise if the model would have to be copied, and is sharded.

    Args:
        model: The model.
        method: The method, which may score a copy of the model.
        traced: Whether example inputs are to be passed through a copy.
    """
    if (method.needs or traced) and any(is_sharded(p) for p in model.parameters()):
        raise IsoflopError(
            "The model is sharded already, so it cannot be copied, as example_inputs and the method "
            f"{method.name!r} may need. Pass the plan of `isoflop.transform` instead of example_inputs, "
            "and use a method that needs no calibration; or train with `isoflop train --shard`, which "
            "shards last."
        )


def default_allocation(allocation: Allocation | str | None, plan: Plan | None) -> Allocation | str:
    """Return the allocation asked for, or else that of the plan, or else uniform."""
    if allocation is not None:
        return allocation
    if plan is not None and plan.allocation in ALLOCATIONS.names():
        return plan.allocation
    return "uniform"


def check_optimizer(optimizer: object) -> None:
    """Raise unless `optimizer` is one that can be hooked and takes dense gradients."""
    # Wrappers such as Accelerate's call themselves optimizers but cannot be hooked.
    hooked = isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks")
    # Only optimizers that call `Optimizer.__init__` have a step that calls hooks.
    if not hooked or not hasattr(getattr(type(optimizer), "step", None), "hooked"):
        raise OptimizerError(
            f"{type(optimizer).__name__} is no torch.optim.Optimizer that takes hooks. Pass the "
            "optimizer itself, before any wrapper."
        )
    if isinstance(optimizer, SparseAdam):
        raise OptimizerError(
            "SparseAdam takes gradients that are sparse tensors, as embeddings have them; those of "
            "masked weights are dense tensors. Use torch.optim.Adam."
        )


def check_unmasked(model: nn.Module, masks: Mapping[str, Tensor] | None) -> None:
    """Raise if some weight of `model` is compressed, or has a mask in whose place none is given.

    A sparsifier that keeps the weights at present must be removed first.
    """
    given = () if masks is None else masks
    masked = [
        name
        for name, module, parameter, _ in named_masks(model)
        if name not in given or is_kept(module, parameter)
    ]
    if masked:
        raise IsoflopError(
            f"This model is masked already, at {some_of(masked)}. To sparsify it anew, call "
            "`sparsifier.remove()` and `isoflop.masks.remove_mask(module)` on each masked module; to "
            "keep the masks, call `sparsifier.remove()` and pass masks=sparsifier.masks."
        )
    compressed = [path for path, m in model.named_modules() if isinstance(m, SparseLayer)]
    if compressed:
        raise IsoflopError(
            f"This model is compressed already, at {some_of(compressed)}. To sparsify it anew, call "
            "`sparsifier.remove()`, `isoflop.densify(model)` and `isoflop.masks.remove_mask(module)` "
            "on each masked module, and make a new optimizer."
        )


def check_mask_names(targets: Sequence[MaskedTarget]) -> None:
    """Raise unless the modules have room for the masks."""
    for target in targets:
        mask_name(target.module, target.parameter)


def check_masks(masks: Mapping[str, Tensor], pattern: Pattern) -> None:
    """Raise unless all masks obey the pattern."""
    broken = [name for name, mask in masks.items() if not pattern.check(mask)]
    if broken:
        raise IsoflopError(
            f"The masks of {some_of(broken)} do not obey the pattern {pattern}. Pass others, or the "
            "pattern that they obey."
        )


def check_budget(
    method: Method,
    plan: Plan | None,
    sparsity: float | None,
    masks: Mapping[str, Tensor] | None,
    exclude: Sequence[str],
) -> None:
    """Raise unless exactly one valid budget is given, or none for a dense method."""
    if masks is not None:
        if plan is not None or sparsity is not None or exclude:
            raise IsoflopError(
                "Pass masks alone, without plan, sparsity and exclude: they say themselves what is "
                "masked, and how much of it."
            )
        random = type(method).initial_masks is Method.initial_masks
        if not method.masks_weights or not random or method.pruning_schedule is not None:
            raise IsoflopError(
                f"The method {method.name!r} chooses its own masks, or none, and cannot begin with "
                "those that are passed. Use one that begins with random masks, such as isoflop.Static() "
                "or isoflop.RigL()."
            )
        return
    if plan is not None and sparsity is not None:
        raise IsoflopError("Pass either plan or sparsity, not both: the plan sets the sparsity.")
    if plan is not None and not isinstance(plan, Plan):
        raise PlanError(f"plan must be what `isoflop.transform` returned, not {plan!r}.")
    if plan is not None and exclude:
        raise IsoflopError(
            "exclude cannot be combined with a plan, whose budget counts on every sparse layer. "
            "Pass exclude to `isoflop.transform` instead."
        )
    if plan is None and sparsity is None and method.masks_weights:
        raise IsoflopError(
            f"The method {method.name!r} needs a plan, as `isoflop.transform` returns it, or a "
            "sparsity such as sparsity=0.9."
        )
    if sparsity is not None:
        number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
        if not number or not 0 <= sparsity < 1:
            raise IsoflopError(
                "sparsity is the fraction of weights that are zero and must lie in [0, 1), such as "
                f"0.9, not {sparsity!r}."
            )


def check_trained(targets: Sequence[MaskedTarget], optimizer: Optimizer) -> None:
    """Raise unless `optimizer` trains every target."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    untrained = [
        t.name for t in targets if id(t.weight) not in trained or not t.weight.requires_grad
    ]
    if untrained:
        raise OptimizerError(
            f"The optimizer does not train {some_of(untrained)}, which would be masked. Make the "
            "optimizer from `model.parameters()` of this very model, unfreeze these weights, or "
            "leave them out by `exclude`."
        )
