"""Checks of the arguments of `sparsify`, made before anything is changed."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam

from isoflop.budget import TOLERANCE
from isoflop.errors import (
    BudgetError,
    IsoflopError,
    NoEffectWarning,
    OptimizerError,
    PatternGapWarning,
)
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.masks import mask_name, named_masks
from isoflop.methods.base import Method
from isoflop.patterns import PATTERNS, Pattern, parse_pattern
from isoflop.plan import Plan
from isoflop.registry import Registry
from isoflop.sparsity.budget_spec import BudgetSpec
from isoflop.sparsity.guard import is_kept
from isoflop.sparsity.init_context import ScoringData
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


def check_pattern(budget_spec: BudgetSpec, counts: Sequence[int], plan: Plan) -> None:
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
    if not plan.is_transformed or not wanted:
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


def check_scoring(method: Method, scoring: ScoringData | None) -> ScoringData:
    """Return the data for scoring; raise if some are missing that the method needs."""
    scoring = ScoringData() if scoring is None else scoring
    if not isinstance(scoring, ScoringData):
        raise IsoflopError(
            f"scoring must be data such as isoflop.ScoringData(batches=…, loss=…), not {scoring!r}."
        )
    examples = {
        "batches": "batches=[(inputs, targets)]",
        "loss": "loss=F.cross_entropy",
        "example_inputs": "example_inputs=(1, 3, 32, 32)",
    }
    if any(getattr(scoring, name) is None for name in method.needs):
        wanted = ", ".join(examples[name] for name in method.needs)
        raise IsoflopError(
            f"The method {method.name!r} scores weights before training and needs "
            f"{' and '.join(method.needs)}. Pass scoring=isoflop.ScoringData({wanted})."
        )
    if scoring.loss is not None and not callable(scoring.loss):
        raise IsoflopError(f"loss must be a function of outputs and targets, not {scoring.loss!r}.")
    if scoring.batches is not None and not isinstance(scoring.batches, Iterable):
        raise IsoflopError(
            f"batches must be an iterable of pairs of inputs and targets, not {scoring.batches!r}."
        )
    return scoring


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
            "and use a method that needs no scoring; or train with `isoflop train --shard`, which "
            "shards last."
        )


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
            "keep the masks, call `sparsifier.remove()` and pass `sparsifier.masks` as the budget."
        )
    compressed = [path for path, m in model.named_modules() if isinstance(m, SparseLayer)]
    if compressed:
        raise IsoflopError(
            f"This model is compressed already, at {some_of(compressed)}. To sparsify it anew, call "
            "`sparsifier.remove()`, `isoflop.densify_(model)` and `isoflop.masks.remove_mask(module)` "
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
