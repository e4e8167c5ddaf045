"""Base of the methods that choose masks before training, by scores of the untrained network."""

import itertools
import logging
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from isoflop.errors import InputError, IsoflopError, NoEffectWarning
from isoflop.methods.base import Method, check_count
from isoflop.methods.scoring import ScoringModel

if TYPE_CHECKING:
    from isoflop.sparsity.init_context import InitContext, Loss

LOGGER = logging.getLogger("isoflop")

PROBES = 8
"""Most runs of an iterative schedule, each with the density that the one before came to."""


@dataclass(frozen=True, kw_only=True)
class PruneAtInit(Method, ABC):
    """Base of the methods that score the weights of the untrained network once and for all.

    The weights of all layers are ranked together and the best are kept: as many as the sparsity
    says, or, when there is a plan, as the FLOPs of the plan buy. Weights are then taken in the order
    of their scores while the MACs last, and the rest, less than the price of one weight, goes to
    layers whose weights are cheap. Masks do not change during training.

    In several rounds, the masks of round t keep ``d_t = D^(t/T)`` of the weights (or, linearly,
    ``1 - (1 - D) t / T``), and the next scores are those of the masked network. D is the density
    that the budget allows in the end, which is known only then: the rounds are run again with the
    density at which both should agree (by secants), until they do to 1 %, eight times at most.
    The budget itself is met every time. The logger ``isoflop`` tells of every round (level INFO).

    Scoring happens on a copy of the model, in which scales that are zero throughout are one (see
    `isoflop.methods.scoring`): the model, its buffers, its gradients and the global random numbers
    stay as they are. In a distributed run the scores are averaged over the workers.

    Attributes:
        min_per_output: How many weights every output of a layer keeps, whatever their scores. A
            layer that the scores alone would empty is warned of. With 0 it is an error.
    """

    resurrects: ClassVar[bool] = False
    """Whether a weight that was masked in one round can return in the next."""

    min_per_output: int = 1

    def __post_init__(self) -> None:
        meaning = "how many weights each output keeps"
        check_count("min_per_output", self.min_per_output, meaning, minimum=0)

    @property
    def densities(self) -> "Rounds":
        """How many rounds there are, and what they keep; here there is one."""
        return Rounds()

    @abstractmethod
    def scoring_model(self, context: "InitContext") -> ScoringModel:
        """Return the copy of the model that is scored, with what it is differentiated on."""

    @abstractmethod
    def scores(self, scoring_model: ScoringModel, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return what each weight is worth in the network masked by `masks`."""

    def initial_masks(self, context: "InitContext") -> list[Tensor]:
        """Return the masks of the weights of highest score."""
        budget_spec, rounds = context.budget_spec, self.densities
        budget, total = budget_spec.cost(context.counts), sum(budget_spec.sizes)
        density = sum(context.counts) / total
        scoring_model = self.scoring_model(context)
        everything = [torch.ones_like(w, dtype=torch.bool) for w in scoring_model.weights]
        first = self._checked(budget_spec.names, self.scores(scoring_model, everything))
        masks = everything
        # Of each run, the logarithms of the density it assumed, and of how far off that was.
        probed: list[tuple[float, float]] = []
        start_time = time.perf_counter()
        for run in range(1, PROBES + 1):
            scores, masks = first, everything
            for t in range(1, rounds.number + 1):
                if t > 1:
                    scores = self._checked(
                        budget_spec.names, self.scores(scoring_model, masks), warn=False
                    )
                if not self.resurrects:
                    pairs = zip(scores, masks, strict=True)
                    scores = [s.masked_fill(~mask, -torch.inf) for s, mask in pairs]
                last = t == rounds.number
                counts, ranked = budget_spec.ranked(
                    scores,
                    budget if last else max(1, round(rounds.density(density, t) * total)),
                    min_per_output=self.min_per_output,
                    by_weight=not last,
                )
                masks = budget_spec.select(ranked, counts)
                if rounds.number > 1:
                    LOGGER.info(
                        "%s: round %d of %d, run %d (of %d at most), %.3g %% of the weights left, %.0f s",
                        *(self.name, t, rounds.number, run, PROBES, 100 * sum(counts) / total),
                        time.perf_counter() - start_time,
                    )
            reached = sum(int(mask.sum()) for mask in masks) / total
            if rounds.number == 1 or abs(reached - density) <= 0.01 * density:
                break
            probed.append((math.log(density), math.log(reached / density)))
            density = min(1.0, max(1 / total, math.exp(_next_probe(probed))))
        return masks

    def _checked(
        self, names: Sequence[str], scores: list[Tensor], *, warn: bool = True
    ) -> list[Tensor]:
        """Return `scores`; raise if any is not finite, and warn of layers that have none."""
        bad = [n for n, s in zip(names, scores, strict=True) if not bool(s.isfinite().all())]
        if bad:
            raise IsoflopError(
                f"The scores of {bad[0]!r} are not finite: the untrained network overflows on the "
                "scoring data. Normalise the inputs, or score in float32."
            )
        zero = [n for n, s in zip(names, scores, strict=True) if not bool(s.any())]
        if zero and warn:
            warnings.warn(
                f"All scores of {', '.join(map(repr, zero[:5]))} are exactly zero, so {self.name} "
                "cannot tell these weights apart. Is the layer's output used, and does it, or the "
                "weight after it, start at zero?",
                NoEffectWarning,
                stacklevel=2,
            )
        return scores


def _next_probe(probed: Sequence[tuple[float, float]]) -> float:
    """Return where the error of the next run may vanish, by the secant through the last two."""
    at, error = probed[-1]
    if len(probed) > 1:
        before, error_before = probed[-2]
        slope = (error - error_before) / (at - before) if at != before else 0.0
        if slope < 0:
            return at - error / slope
    return at + error


@dataclass(frozen=True)
class Rounds:
    """How many rounds of pruning there are, and what fraction of the weights each keeps."""

    number: int = 1
    schedule: str = "exponential"

    def __post_init__(self) -> None:
        check_count("rounds", self.number, "how often the network is scored")
        if self.schedule not in ("exponential", "linear"):
            raise IsoflopError(
                f"The schedule of rounds must be 'exponential' or 'linear', not {self.schedule!r}."
            )

    def density(self, final: float, t: int) -> float:
        """Return what round `t`, from 1 on, keeps if the last one keeps `final`."""
        if self.schedule == "linear":
            return 1 - (1 - final) * t / self.number
        return final ** (t / self.number)


@dataclass(frozen=True, kw_only=True)
class InRounds(PruneAtInit, ABC):
    """Base of the methods that score the network again and again as it is pruned.

    Attributes:
        rounds: How often the network is scored and pruned.
        schedule: ``"exponential"`` or ``"linear"``, the trajectory of the density over the rounds.
    """

    rounds: int = 10
    schedule: str = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        Rounds(self.rounds, self.schedule)

    @property
    def densities(self) -> Rounds:
        """The rounds."""
        return Rounds(self.rounds, self.schedule)


@dataclass(frozen=True, kw_only=True)
class CalibratedPruning(PruneAtInit, ABC):
    """Base of the methods that score by the loss on a few labelled batches.

    Attributes:
        batches: How many batches of `ScoringData.batches` to use; gradients are averaged over them.
    """

    needs: ClassVar[tuple[str, ...]] = ("batches", "loss")

    batches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("batches", self.batches, "how many scoring batches are used")

    def loss(self, loss: "Loss", outputs: Any, labels: Any) -> Tensor:
        """Return the loss that is differentiated; here the one given."""
        return loss(outputs, labels)

    def scoring_model(self, context: "InitContext") -> ScoringModel:
        """Return a copy of the model with the loss of each batch."""
        assert context.scoring.batches is not None
        assert context.scoring.loss is not None
        loss = context.scoring.loss
        device = next(context.model.parameters()).device
        batches = []
        for batch in itertools.islice(iter(context.scoring.batches), self.batches):
            if not isinstance(batch, Sequence) or len(batch) != 2:
                raise InputError(
                    "The batches for scoring must yield pairs of inputs and targets, not "
                    f"{type(batch).__name__}: pass a list such as [(inputs, targets)]."
                )
            batches.append(tree_map_only(Tensor, lambda t: t.to(device), tuple(batch)))
        if len(batches) < self.batches:
            raise InputError(
                f"The method {self.name!r} uses {self.batches} batches, but the data for scoring have "
                f"{len(batches)}. Pass more, or set batches={len(batches) or 1}."
            )

        def objectives(model: nn.Module) -> Iterator[Tensor]:
            for inputs, labels in batches:
                try:
                    value = self.loss(loss, _call(model, inputs), labels)
                except Exception as error:
                    raise InputError(
                        f"The loss of a scoring batch cannot be computed: "
                        f"{type(error).__name__}: {error}. Pass batches=[(inputs, targets), …] "
                        "with which `loss(model(inputs), targets)` works."
                    ) from error
                yield value

        return ScoringModel(context.model, context.budget_spec.names, objectives, context.generator)


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
