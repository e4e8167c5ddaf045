"""The sparsifier: keeps a model sparse while any training loop trains it."""

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from isoflop.budget import with_counts
from isoflop.errors import IsoflopError, NoEffectWarning, WorkersError
from isoflop.methods.base import Method
from isoflop.plan import Plan
from isoflop.sparsity import accounting
from isoflop.sparsity.agreement import check_agreement, checksum, checksum_of_generator
from isoflop.sparsity.budget_spec import BudgetSpec
from isoflop.sparsity.guard import Guard
from isoflop.sparsity.target import some_of
from isoflop.sparsity.trajectory import PruningTrajectory
from isoflop.sparsity.update import Update
from isoflop.sparsity.weights.base import Gradients, Storage
from isoflop.sparsity.weights.sharding import full_tensor, is_sharded

_CHOICES = ("method", "options", "storage", "total_steps", "pattern")
"""Arguments of `sparsify` that must be those of the saved run, as a message calls them."""

_RESULTS = {
    "prices": "another budget, in MACs or in weights: call `sparsify` with the plan or the sparsity",
    "trajectory": "another trajectory of the number of weights: call `sparsify` with the plan or the "
    "sparsity, and with the allocation,",
    "macs": "another count of MACs: call `sparsify` with the plan or the example_inputs",
}
"""What follows from other arguments and must be as in the saved run."""


class Sparsifier:
    """Keeps the weights of a model sparse; made by `isoflop.sparsify`.

    The masks live in the model, as buffers beside the weights or as the indices of compressed ones,
    and travel in its `state_dict`. Everything else that a resumed run needs is in the `state_dict`
    of the sparsifier.

    Each step of the optimizer goes through three phases. Before it, the gradients of masked
    weights are zeroed, after being copied if the method needs them. After it, weights and optimizer
    state are masked, since weight decay and momentum know nothing of masks. Then, if due, the masks
    are updated. In compressed storage there is nothing to mask. In distributed training every worker
    sees the same reduced gradients and draws the same random numbers, so all choose the same masks
    without exchanging them.

    A step that a gradient scaler leaves out is not counted, whether the scaler does not call the
    optimizer, or the optimizer (a fused one) skips the step inside.

    Attributes:
        method: The method.
        total_steps: Optimizer steps of the whole run.
        step: Optimizer steps taken.
        history: One entry per update (none for methods whose masks follow every step): ``step``;
            ``fraction``, what part of the active weights could be replaced; ``new``, how many
            weights of each layer became active that were not before; ``skipped``, whether
            non-finite gradients prevented growth; ``pruned``, if there is a pruning schedule, how
            many weights of each layer it took away.
    """

    def __init__(
        self,
        budget_spec: BudgetSpec,
        counts: Sequence[int],
        optimizer: Optimizer,
        storage: Storage,
        method: Method,
        generator: torch.Generator,
        total_steps: int,
        plan: Plan | None,
        trajectory: PruningTrajectory | None,
    ) -> None:
        self.method = method
        self.total_steps = total_steps
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._budget_spec = budget_spec
        self._targets = budget_spec.targets
        self._counts = list(counts)
        self._optimizer = optimizer
        self._storage = storage
        self._generator = generator
        self._plan = plan
        self._trajectory = trajectory
        # MACs of a forward pass without masks, of what is not masked, and of each masked weight.
        self._unmasked_macs = plan.unmasked_macs if plan else 0
        sparse = plan.sparse_layers if plan else ()
        self._fixed_macs = plan.macs - sum(layer.macs for layer in sparse) if plan else 0
        prices = {layer.parameter: layer.macs_per_weight for layer in sparse}
        self._macs_per_weight = [prices.get(name, 0) for name in budget_spec.names]
        self._training_macs = 0
        self._summed_macs = 0
        # What the method remembers of gradients, by name.
        self._memory: dict[str, Tensor] = {}
        # The gradients of the step under way.
        self._gradients: Gradients | None = None
        self._guard = Guard(self._targets, optimizer)
        self._guard.end_step(self._counts)
        self._warned = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._expect()

    @property
    def masks(self) -> dict[str, Tensor]:
        """The present masks, by parameter name."""
        return {target.name: target.mask for target in self._targets}

    @property
    def nnz(self) -> dict[str, int]:
        """Number of active weights of each masked weight at present, by parameter name."""
        return dict(zip(self._budget_spec.names, self._guard.counts(), strict=True))

    @property
    def plan(self) -> Plan | None:
        """The plan with the present numbers of non-zeros.

        That is the plan passed to `sparsify`, with the allocation in use (the name of the method,
        where it is the method that spreads the weights); or, without one, the plan of the model as it
        is, whose budget is the unmasked model. None if no MACs are counted.
        """
        plan = self._plan
        if plan is None or not self._targets:
            return plan
        if {x.parameter: x.nnz for x in plan.sparse_layers} == self.nnz:
            return plan
        plan = with_counts(plan, self.nnz)
        return dataclasses.replace(plan, allocation=self.method.name)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of all weights of each masked weight, zeros included, by parameter name."""
        return dict(zip(self._budget_spec.names, self._budget_spec.sizes, strict=True))

    def density(self) -> float:
        """Return the fraction of active weights among all weights that have a mask."""
        numel = sum(self._budget_spec.sizes)
        return sum(self._guard.counts()) / numel if numel else 1.0

    def forward_macs(self) -> tuple[int, int]:
        """Return the MACs of a forward pass at present, with zeros skipped and with none skipped.

        Raises:
            IsoflopError: The budget counts no MACs: it is no plan, or one without example inputs.
        """
        plan = self._plan
        if plan is None:
            raise IsoflopError(
                "MACs can be counted only for inputs of a known shape. Pass a plan with example "
                "inputs, such as isoflop.plain_plan(model, 0.9, example_inputs=(1, 3, 32, 32))."
            )
        if not self.method.masks_weights:
            return self._unmasked_macs, self._unmasked_macs
        return self._fixed_macs + self._masked_macs(self._guard.counts()), self._unmasked_macs

    def step_macs(self) -> int:
        """Return the MACs that the next training step costs, for inputs such as the example's.

        Raises:
            IsoflopError: The budget counts no MACs: it is no plan, or one without example inputs.
        """
        macs, unmasked = self.forward_macs()
        observed = self.method.observes(self.step + 1, self.total_steps)
        return accounting.step_macs(macs, unmasked, dense_gradient=observed)

    def training_macs(self) -> int:
        """Return the MACs of all training steps so far, for inputs such as the example's.

        Forward passes, gradients of activations and gradients of weights, masked ones included in
        the steps for which the method needs them. Steps that were not counted are not in it.

        Raises:
            IsoflopError: The budget counts no MACs: it is no plan, or one without example inputs.
        """
        self.forward_macs()
        return self._training_macs

    def average_macs(self) -> float:
        """Return the MACs of a forward pass, on average over the training steps so far.

        Methods that prune during training meet the FLOPs of a plan by this average.

        Raises:
            IsoflopError: The budget counts no MACs: it is no plan, or one without example inputs.
        """
        macs, _ = self.forward_macs()
        return self._summed_macs / self.step if self.step else float(macs)

    def forecast_macs(self) -> int:
        """Return what `training_macs` will be at the end, if training starts anew.

        Raises:
            IsoflopError: The budget counts no MACs: it is no plan, or one without example inputs.
        """
        macs, unmasked = self.forward_macs()
        changes = [(0, macs)]
        if self._trajectory is not None:
            trajectory = self._trajectory
            limits = list(trajectory.initial)
            changes = [(0, self._fixed_macs + self._masked_macs(limits))]
            for step in range(1, self.total_steps):
                if trajectory.pruning_schedule.due(step, self.total_steps):
                    limits = trajectory.counts(step, limits)
                    changes.append((step, self._fixed_macs + self._masked_macs(limits)))
        return accounting.training_macs(self.method, self.total_steps, unmasked, changes)

    def check_workers(self) -> None:
        """Raise unless all workers of a distributed run have the same masks; all must call this.

        Masks are chosen by every worker for itself. That they are equal follows from equal weights,
        gradients and random numbers; this compares checksums of a few bytes per layer, for whoever
        wants proof. Sharded masks are gathered and must have their exact number of non-zeros. In a
        process of its own there is nothing to compare.

        Raises:
            WorkersError: Masks, random numbers or steps differ.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        numbers: dict[str, Tensor | int] = {
            "the number of steps": self.step,
            "the random number generator": checksum_of_generator(self._generator),
        }
        torn = []
        for target, count in zip(self._targets, self._counts, strict=True):
            mask = full_tensor(target.mask)
            numbers[f"the mask of {target.name!r}"] = checksum(mask)
            if is_sharded(target.mask):
                torn.append(mask.sum() != count)
        check_agreement(numbers, self._optimizer.param_groups[0]["params"][0].device)
        # The parts of a sharded mask may stem from different choices; then they do not add up.
        if torn and bool(torch.stack(torn).any()):
            names = [n for n, bad in zip(self._budget_spec.names, torn, strict=True) if bad]
            raise WorkersError(
                f"The workers have come apart: their parts of the mask of {names[0]!r} do not add up "
                "to its number of non-zeros. Call `sparsify` with the same arguments and seed on "
                "every worker, and leave masks to the sparsifier."
            )

    def rebind(self) -> None:
        """Take up weights that have replaced the masked ones, sharded for instance.

        Masks, and what else lies like its weight, are then sharded in the same way. The optimizer
        must have been given the new weights before.

        Raises:
            IsoflopError: The storage is compressed.
        """
        self._storage.rebind()
        self._guard.watch()
        self._guard.end_step(self._counts)
        by_name = {target.name: target for target in self._targets}
        self._memory = {name: by_name[name].placed(t) for name, t in self._memory.items()}

    def remove(self) -> None:
        """Detach from model and optimizer; masks and zeros stay, but nobody keeps them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._storage.remove()
        self._guard.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the states of model and optimizer."""
        return {
            "method": self.method.name,
            "config": self.method.config,
            "storage": self._storage.name,
            "budget": {target.name: target.nnz for target in self._targets},
            "nnz": dict(zip(self._budget_spec.names, self._counts, strict=True)),
            **self._schedule(),
            "step": self.step,
            "generator": self._generator.get_state(),
            "history": copy.deepcopy(self.history),
            "memory": {name: tensor.clone() for name, tensor in self._memory.items()},
            "hidden_weights": self._storage.state(),
            "training_macs": self._training_macs,
            "summed_macs": self._summed_macs,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; load model and optimizer as well.

        Raises:
            IsoflopError: The state is that of another run: another method, schedule, pattern or storage,
                or other layers, numbers of weights or MACs. Nothing has been changed then.
        """
        if not isinstance(state, Mapping):
            raise IsoflopError(
                f"The state must be what `sparsifier.state_dict()` returned, not {type(state).__name__}."
            )
        own = self.state_dict()
        missing = [key for key in own if key not in state]
        if missing and set(missing) <= self._schedule().keys():
            raise IsoflopError(
                f"This state was saved by an earlier version, which did not note {', '.join(missing)}, "
                "so it cannot be told whether this run has the same schedule. If it has, load "
                "`{**sparsifier.state_dict(), **state}`; else start anew."
            )
        if missing:
            raise IsoflopError(
                f"This is no state of a sparsifier: {', '.join(missing)} missing. Pass what "
                "`sparsifier.state_dict()` returned."
            )
        for noun in _CHOICES:
            key = "config" if noun == "options" else noun
            if state[key] != own[key]:
                raise IsoflopError(
                    f"The saved run used the {noun} {state[key]!r}, this one {own[key]!r}. Call "
                    "`sparsify` with those of the saved run."
                )
        saved, budget = state["budget"], own["budget"]
        if saved != budget:
            differing = sorted(
                n for n in saved.keys() | budget.keys() if saved.get(n) != budget.get(n)
            )
            raise IsoflopError(
                "The saved run masked other layers, or kept another number of weights in "
                f"{some_of(differing)}. Call `sparsify` with the plan or sparsity of the "
                "saved run."
            )
        for key, problem in _RESULTS.items():
            if state[key] != own[key]:
                raise IsoflopError(f"The saved run had {problem} of the saved run.")
        self.step = state["step"]
        self._counts = [state["nnz"][name] for name in self._budget_spec.names]
        # A checkpoint that was loaded onto an accelerator has moved the generator's state there.
        self._generator.set_state(state["generator"].cpu())
        self.history = copy.deepcopy(state["history"])
        self._memory = {
            t.name: t.placed(state["memory"][t.name])
            for t in self._targets
            if t.name in state["memory"]
        }
        self._storage.load(state["hidden_weights"])
        self._training_macs = state["training_macs"]
        self._summed_macs = state["summed_macs"]
        self._expect()

    def _check_counts(self) -> None:
        """Raise if the masks have other numbers of weights than the sparsifier has given them."""
        differing = [
            f"{n:,} weights of {name!r} in place of {expected:,}"
            for name, n, expected in zip(
                self._budget_spec.names, self._guard.counts(), self._counts, strict=True
            )
            if n != expected
        ]
        if differing:
            rest = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise IsoflopError(
                f"The masks of the model now keep {', '.join(differing[:3])}{rest}: the state of a "
                "model of another density was loaded. Load the state of its sparsifier too "
                "(`sparsifier.load_state_dict`), or call `sparsify` with its sparsity or plan."
            )

    def _schedule(self) -> dict[str, Any]:
        """Return, as plain data, what shapes the rest of the training besides method and masks."""
        trajectory = self._trajectory
        return {
            "total_steps": self.total_steps,
            "pattern": str(self._budget_spec.pattern),
            "prices": list(self._budget_spec.prices),
            "trajectory": None
            if trajectory is None
            else [
                trajectory.initial,
                trajectory.final_ideal,
                trajectory.initial_cost,
                trajectory.final_cost,
            ],
            "macs": [self._fixed_macs, self._unmasked_macs, self._macs_per_weight],
        }

    def _masked_macs(self, counts: Sequence[int]) -> int:
        return sum(int(n * macs) for n, macs in zip(counts, self._macs_per_weight, strict=True))

    def _expect(self) -> None:
        """Tell the storage what the next step is for."""
        step, total = self.step + 1, self.total_steps
        growth = None
        if self.method.observes(step, total):
            growth = [self.method.largest_growth(n, step, total) for n in self._counts]
        self._storage.before_backward(growth)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._check_counts()
        self._guard.begin_step(self.step)
        self._gradients = None
        # A fused optimizer unscales gradients by itself.
        scale = getattr(optimizer, "grad_scale", None)
        # The optimizer itself is args[0].
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._take_gradients(scale)
            self._storage.expose_trainable()
            return None

        # Gradients do not exist before the optimizer calls the closure, which must see the model
        # as it is outside the optimizer.
        self._storage.expose_trainable()
        choose_masks = self._choose_masks if self.method.keeps_dense_weights else None

        def masked_closure() -> Any:
            self._storage.apply_masks(choose_masks)
            with torch.enable_grad():
                loss = closure()
            self._take_gradients(scale)
            self._storage.expose_trainable()
            return loss

        if len(args) > 1:
            return (args[0], masked_closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": masked_closure}

    @torch.no_grad()
    def _take_gradients(self, scale: Tensor | None) -> None:
        # An optimizer may call a closure several times; the first time is at the present weights.
        if self._gradients is None:
            self._gradients = self._storage.collect_grads(scale)
        self._storage.mask_grads(scale)

    @torch.no_grad()
    def _after_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        del args, kwargs
        gradients, self._gradients = self._gradients, None
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and bool(overflow):
            self._storage.apply_masks(None)
            self._guard.end_step(self._counts)
            return
        if self._plan is not None:
            self._training_macs += self.step_macs()
            self._summed_macs += self.forward_macs()[0]
        self.step += 1
        # Overflowed gradients say nothing about where to grow.
        finite = gradients is None or gradients.finite()
        if self.method.remembers and gradients is not None and finite:
            self._remember(gradients)
        due = self.method.update_due(self.step, self.total_steps)
        self._storage.apply_masks((lambda: self._update(gradients, finite)) if due else None)
        self._guard.end_step(self._counts)
        self._expect()
        if self.step > self.total_steps and self.method.changes_masks and not self._warned:
            self._warned = True
            warnings.warn(
                f"Step {self.step} is past the total_steps={self.total_steps} that `sparsify` was given: "
                f"the schedule of {self.method.name!r} is over and masks change no more. Pass the number "
                "of steps of the whole training.",
                NoEffectWarning,
                stacklevel=2,
            )

    def _remember(self, gradients: Gradients) -> None:
        for name in self._budget_spec.names:
            gradient = gradients.dense(name)
            if gradient is not None:
                memory = self.method.remember(self._memory.get(name), gradient)
                if memory is not None:
                    self._memory[name] = memory

    def _update(self, gradients: Gradients | None, finite: bool) -> None:
        """Let the method change the masks."""
        update = self._new_update(gradients, finite)
        self.method.update(update)
        if not self.method.keeps_dense_weights:
            self.history.append(update.entry())

    def _choose_masks(self) -> None:
        """Let the masks follow the weights in the middle of a step."""
        self.method.update(self._new_update(None, True))

    def _new_update(self, gradients: Gradients | None, finite: bool) -> Update:
        def memory(name: str) -> Tensor | None:
            if self.method.remembers or gradients is None:
                return self._memory.get(name)
            gradient = gradients.dense(name)
            return None if gradient is None else self.method.remember(None, gradient)

        return Update(
            self._budget_spec,
            self._counts,
            self.step,
            self.total_steps,
            trajectory=self._trajectory,
            memory=memory,
            trained=frozenset() if gradients is None else gradients.trained,
            finite=finite,
            generator=self._generator,
        )
