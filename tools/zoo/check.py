"""The check of one model: transform it, and look at the result with other eyes."""

import dataclasses
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.flops.trace import Trace, profile, trace
from isoflop.plan import Plan
from isoflop.sparsity import sparsify
from isoflop.transforms import Transform, transform
from tools.zoo.build import build, forward, inputs_for
from tools.zoo.causes import cause_of
from tools.zoo.fixed import fixed_sizes
from tools.zoo.growth import growth

RUN_PARAMETERS = 40_000_000
"""Models of at most so many parameters are also built for real …"""

RUN_MACS = 6_000_000_000
"""… and those of them with at most so many MACs are transformed for real, run and trained."""

COST_BOUNDS = (0.6, 1.2)
"""Cost of the hidden weights without a zero, as a part of the nominal `1 / (1 - sparsity)`."""


SPREAD = 5.0
"""Factor within which the spread of the first output is that of the dense model's …"""

SPREAD_OF = 100
"""… where it has at least so many numbers."""


class CheckFailed(Exception):  # noqa: N818  (a finding, no mistake)
    """The transformed model is not what was promised.

    Attributes:
        cause: What is wrong, the same text for all models.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


def check(
    spec: str, config: Transform, enter: Callable[[str], None] = lambda stage: None
) -> dict[str, Any]:
    """Build, transform and check a model; whatever happens is part of the result.

    Args:
        spec: The model; `transformers:TYPE` is a tiny one of that type.
        config: The transform.
        enter: Called with the name of every stage that begins.

    Returns:
        Plain data: `status` is ``"pass"``, ``"fail"`` or ``"not built"`` (the model itself cannot
        be built or run); `stage`, `error`, `message`, `where` and `cause` say why.
    """
    current = _Check(spec, config, enter)
    start = time.monotonic()
    try:
        current.run()
        current.result["status"] = "pass"
    except Exception as error:
        current.fail(error)
    current.result["total_seconds"] = round(time.monotonic() - start, 2)
    return current.result


class _Check:
    """One check; `result` fills up as it goes."""

    def __init__(self, spec: str, config: Transform, enter: Callable[[str], None]) -> None:
        self.spec = spec
        self.config = config
        self.result: dict[str, Any] = {"spec": spec}
        self._announce = enter
        self._stage = ""

    def enter(self, stage: str) -> None:
        self._stage = stage
        self._announce(stage)

    def fail(self, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        name = type(error).__name__
        if isinstance(error, CheckFailed):
            cause = error.cause
        else:
            cause = cause_of(name, str(error))
            if self._stage not in ("build", "transform"):
                cause = f"{self._stage}: {cause}"
        self.result |= {
            "status": "not built" if self._stage == "build" else "fail",
            "stage": self._stage,
            "error": name,
            "message": str(error)[:2000],
            "where": f"{Path(frames[-1].filename).name}:{frames[-1].lineno}",
            "cause": cause,
        }

    def run(self) -> None:
        self.enter("build")
        light, real, outputs = self._build()
        inputs = inputs_for(self.spec, light)
        self.enter("transform")
        start = time.monotonic()
        wide, plan = transform(light, self.config, example_inputs=inputs)
        self.result["seconds"] = round(time.monotonic() - start, 2)
        self.enter("check")
        before, after = trace(light, inputs), trace(wide, inputs)
        self._verify(light, plan, before, after)
        del wide, light
        if real is None:
            self.result["skipped"] = f"{self.result['parameters'] / 1e6:.0f} M parameters"
        elif before.table.macs > RUN_MACS:
            self.result["skipped"] = f"{before.table.macs / 1e9:.0f} G MACs"
        else:
            self._run_for_real(real, outputs, plan)

    def _build(self) -> tuple[nn.Module, nn.Module | None, list[Tensor]]:
        """Return the model on the meta device, for real, and what the latter returns.

        Where the meta device is refused, both are real; a large model is not built for real.
        """
        real = None
        try:
            light = build(self.spec, meta=True)
        except Exception:
            light = real = build(self.spec, meta=False)
        parameters = sum(p.numel() for p in light.parameters())
        self.result |= {"parameters": parameters, "modules": sum(1 for _ in light.modules())}
        if parameters > RUN_PARAMETERS:
            return light, None, []
        torch.manual_seed(0)
        real = build(self.spec, meta=False) if real is None else real
        with torch.no_grad():
            outputs = forward(real.eval(), inputs_for(self.spec, real))
        return light, real, outputs

    def _verify(self, model: nn.Module, plan: Plan, before: Trace, after: Trace) -> None:
        dense = before.table.macs
        self.result |= {
            "dense_macs": dense,
            "unmasked_macs": after.table.macs,
            "ratio": after.table.macs / dense,
            "gap": plan.relative_gap,
        }
        if before.output_shapes != after.output_shapes:
            raise CheckFailed("other output shapes", f"{after.output_shapes}")
        if plan.dense_macs != dense or plan.unmasked_macs != after.table.macs:
            raise CheckFailed(
                "the plan's MACs are not the models'",
                f"{plan.dense_macs} and {plan.unmasked_macs}, not {dense} and {after.table.macs}",
            )
        weights = [layer.macs_per_weight for layer in plan.sparse_layers]
        if weights and abs(plan.macs - dense) > max(1e-6 * dense, min(weights)):
            raise CheckFailed("gap larger than a weight", f"{plan.relative_gap:+.2e}")
        if plan.transform == "wide":
            self._verify_growth(model, plan, before)

    def _verify_growth(self, model: nn.Module, plan: Plan, before: Trace) -> None:
        nominal = 1.0 / (1.0 - self.config.sparsity)
        fixed = fixed_sizes(self.spec, model, before.output_shapes)
        grown = growth(plan, before, math.sqrt(nominal), fixed)
        self.result |= {"share": grown.share, "hidden_ratio": grown.ratio}
        if grown.kept:
            few = ", ".join(f"{name} {shapes}" for name, shapes in list(grown.kept.items())[:20])
            raise CheckFailed("not widened throughout", f"{len(grown.kept)} weights: {few}")
        low, high = (bound * nominal for bound in COST_BOUNDS)
        if grown.ratio is not None and not low <= grown.ratio <= high:
            raise CheckFailed("hidden weights of the wrong cost", f"×{grown.ratio:.3f}")

    def _run_for_real(self, dense: nn.Module, outputs: list[Tensor], plan: Plan) -> None:
        self.enter("transform for real")
        inputs = inputs_for(self.spec, dense)
        wide, real_plan = transform(dense, self.config, example_inputs=inputs)
        if real_plan != plan:
            raise CheckFailed("another plan on the meta device", _difference(plan, real_plan))
        self.enter("sparsify")
        # As it is meant to be used: without its zeros, a deep network's activations overflow.
        optimizer = torch.optim.SGD(wide.parameters(), lr=1e-3)
        sparsify(wide, optimizer, "static", plan, total_steps=2)
        macs = profile(wide, inputs).macs
        if macs != plan.macs:
            raise CheckFailed("the masked model costs something else", f"{macs}, not {plan.macs}")
        self.enter("forward")
        with torch.no_grad():
            results = forward(wide.eval(), inputs)
        if [t.shape for t in results] != [t.shape for t in outputs]:
            shapes = [tuple(t.shape) for t in results]
            raise CheckFailed("other output shapes for real", f"{shapes}")
        if _finite(outputs) and not _finite(results):
            raise CheckFailed("outputs that are not finite", "in evaluation mode")
        self._verify_spread(outputs, results)
        self.enter("training step")
        try:
            self._train(wide, optimizer)
        except Exception:
            # A model that cannot be trained so before can neither be afterwards.
            try:
                self._train(dense, torch.optim.SGD(dense.parameters(), lr=1e-3))
            except Exception as error:
                self.result["skipped"] = f"training: {type(error).__name__} in the dense model"
                return
            raise
        weights = dict(wide.named_parameters())
        for layer in plan.sparse_layers:
            if int(weights[layer.parameter].count_nonzero()) > layer.nnz:
                raise CheckFailed("a training step undid zeros", layer.parameter)

    def _verify_spread(self, outputs: list[Tensor], results: list[Tensor]) -> None:
        """Compare the logits of the fresh models: a scale that did not follow its width shows there."""
        dense, wide = (float(tensors[0].float().std()) for tensors in (outputs, results))
        # Some models start at zero, or do so but for rounding.
        if outputs[0].numel() >= SPREAD_OF and dense > 1e-6 and math.isfinite(wide):
            self.result["spread"] = wide / dense
            if not 1 / SPREAD < wide / dense < SPREAD:
                raise CheckFailed("logits of another spread", f"×{wide / dense:.3g}")

    def _train(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.train()
        results = forward(model, inputs_for(self.spec, model, batch=2))
        losses = [t.float().mean() for t in results if t.requires_grad]
        torch.stack(losses).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not gradients or not _finite(gradients):
            raise CheckFailed("gradients that are not finite", "in training mode")
        optimizer.step()


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _difference(plan: Plan, other: Plan) -> str:
    for a, b in zip(plan.layers, other.layers, strict=False):
        if a != b:
            return f"{dataclasses.asdict(a)}, {dataclasses.asdict(b)}"
    return f"{len(plan.layers)} weights, {len(other.layers)}"
