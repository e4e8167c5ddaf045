"""Synaptic flow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from isoflop.errors import InputError
from isoflop.flops.fakes import plain_output
from isoflop.methods.base import METHODS
from isoflop.methods.prune_at_init import InRounds
from isoflop.methods.scoring import ScoringModel
from isoflop.surgery import normalize_inputs

if TYPE_CHECKING:
    from isoflop.sparsity.init_context import InitContext


@METHODS.register("synflow")
@dataclass(frozen=True, kw_only=True)
class SynFlow(InRounds):
    """SynFlow: before training and without data, keep the weights that most flow passes through.

    Formula: all parameters are replaced by their absolute values and the input by ones. R is the
    sum of all outputs and the score of a weight ``w * dR/dw``. In round t of T, the ``D^(t/T)`` of
    the weights with the highest scores stay. In a linear network the scores of every layer have the
    same sum, so that no layer can be emptied before the others.

    The scores are computed in float64, because R overflows in deep networks (in the type of the model,
    where its code allows no other), in evaluation mode, and for ``example_inputs`` of which only the
    shapes matter; its integer inputs stay as they are.

    Defaults: ``rounds=100``, exponential schedule, ``min_per_output=1``.

    Cost: ``3 f_D`` per round for one sample, then ``3 f_S`` per sample.

    Source: Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving
    synaptic flow", algorithm 1, https://arxiv.org/abs/2006.05467.

    Attributes:
        rounds: How often the network is scored and pruned.
        schedule: ``"exponential"`` or ``"linear"``, the trajectory of the density over the rounds.
    """

    needs: ClassVar[tuple[str, ...]] = ("example_inputs",)

    rounds: int = 100

    def scoring_model(self, context: "InitContext") -> ScoringModel:
        """Return a copy with absolute weights, and the sum of its outputs for an input of ones."""
        scoring_model = _scoring_model(context, torch.float64)
        try:
            scoring_model.gradients(
                [torch.ones_like(w, dtype=torch.bool) for w in scoring_model.weights]
            )
        except InputError:  # a type that is fixed in its code, perhaps
            scoring_model = _scoring_model(context, next(context.model.parameters()).dtype)
        return scoring_model

    def scores(self, scoring_model: ScoringModel, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return ``w * dR/dw`` at the masked absolute weights."""
        gradients = scoring_model.gradients(masks)
        return [
            weight.masked_fill(~mask, 0) * gradient
            for weight, mask, gradient in zip(scoring_model.weights, masks, gradients, strict=True)
        ]


def _scoring_model(context: "InitContext", dtype: torch.dtype) -> ScoringModel:
    args, kwargs = normalize_inputs(context.model, context.scoring.example_inputs)
    device = next(context.model.parameters()).device

    def ones(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.to(device)
        return torch.ones(tensor.shape, dtype=dtype, device=device)

    args, kwargs = tree_map_only(Tensor, ones, (args, kwargs))

    def objectives(model: nn.Module) -> Iterator[Tensor]:
        try:
            output = plain_output(model(*args, **kwargs))
        except Exception as error:
            raise InputError(
                f"The model cannot be run on example_inputs: {type(error).__name__}: {error}. Pass the "
                "shape of one sample, such as (1, 3, 32, 32)."
            ) from error
        tensors = (t for t in tree_leaves(output) if isinstance(t, Tensor))
        yield torch.stack([t.sum() for t in tensors if t.is_floating_point()]).sum()

    scoring_model = ScoringModel(
        context.model, context.budget_spec.names, objectives, context.generator, dtype=dtype
    )
    scoring_model.model.eval()
    with torch.no_grad():
        for tensor in [*scoring_model.model.parameters(), *scoring_model.weights]:
            tensor.abs_()
    return scoring_model
