"""The checks of one model: transform it and look at the result with other eyes."""

import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import isoflop
from isoflop.flops import Trace, trace
from isoflop.plan import Plan
from isoflop.surgery import plain_output
from isoflop.transforms import Transform
from isoflop.zoo.build import build, inputs_for
from isoflop.zoo.causes import cause_of

RUN_PARAMETERS = 40_000_000
"""Models of at most so many dense parameters are also built for real and run."""


class CheckFailed(Exception):  # noqa: N818  (it is a finding, not a mistake)
    """The transformed model is not what was promised."""


@dataclass
class Check:
    """The check of one model; `run` fills in `result`."""

    spec: str
    config: Transform
    stage: Callable[[str], None]

    def run(self) -> dict[str, Any]:
        """Build, transform and check; never raises."""
        self.result: dict[str, Any] = {"spec": self.spec, "status": "fail"}
        self._stage = ""
        start = time.monotonic()
        try:
            self._run()
            self.result["status"] = "pass"
        except Exception as error:
            self._record(error)
        self.result["total_seconds"] = round(time.monotonic() - start, 2)
        return self.result

    def _enter(self, stage: str) -> None:
        self._stage = stage
        self.stage(stage)

    def _record(self, error: BaseException) -> None:
        if self._stage == "build":
            self.result["status"] = "not built"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        self.result |= {
            "stage": self._stage,
            "error": type(error).__name__,
            "message": str(error)[:2000],
            "cause": cause_of(type(error).__name__, str(error)),
            "where": f"{os.path.basename(frame.filename)}:{frame.lineno}",
        }

    def _run(self) -> None:
        self._enter("build")
        try:
            dense = build(self.spec, meta=True)
        except Exception:
            dense = build(self.spec, meta=False)
        meta = all(p.is_meta for p in dense.parameters())
        inputs = inputs_for(self.spec, dense, meta=meta)
        parameters = sum(p.numel() for p in dense.parameters())
        self.result |= {
            "parameters": parameters,
            "modules": sum(1 for _ in dense.modules()),
            "meta": meta,
        }
        self._enter("transform")
        start = time.monotonic()
        wide, plan = isoflop.transform(dense, self.config, example_inputs=inputs)
        self.result["seconds"] = round(time.monotonic() - start, 2)
        self._enter("check")
        before, after = trace(dense, inputs), trace(wide, inputs)
        self.result |= measures(dense, wide, plan, before, after)
        verify(self.config, plan, before, after, self.result)
        del wide
        if parameters <= RUN_PARAMETERS:
            self._run_for_real(before)

    def _run_for_real(self, before: Trace) -> None:
        self._enter("build for real")
        torch.manual_seed(0)
        dense = build(self.spec, meta=False)
        inputs = inputs_for(self.spec, dense)
        self._enter("transform for real")
        wide, _ = isoflop.transform(dense, self.config, example_inputs=inputs)
        del dense
        self._enter("forward")
        wide.eval()
        with torch.no_grad():
            outputs = _outputs(_call(wide, inputs))
        shapes = tuple(tuple(t.shape) for t in outputs)
        if shapes != before.output_shapes:
            raise CheckFailed(f"a real forward pass returns {shapes}, not {before.output_shapes}")
        if not all(t.isfinite().all() for t in outputs if t.is_floating_point()):
            raise CheckFailed("a real forward pass returns values that are not finite")
        self.result["forward"] = True
        self._enter("training step")
        wide.train()
        outputs = _outputs(_call(wide, inputs_for(self.spec, wide, batch=2)))
        loss = torch.stack([t.float().mean() for t in outputs if t.requires_grad]).sum()
        loss.backward()
        if not all(p.grad is None or p.grad.isfinite().all() for p in wide.parameters()):
            raise CheckFailed("a training step yields gradients that are not finite")
        self.result["training"] = True


def measures(
    dense: nn.Module, wide: nn.Module, plan: Plan, before: Trace, after: Trace
) -> dict[str, Any]:
    """Return the numbers of a transformed model."""
    del dense, wide
    return {
        "dense_macs": before.table.macs,
        "unmasked_macs": after.table.macs,
        "ratio": after.table.macs / before.table.macs,
        "gap": plan.relative_gap,
        "gap_macs": plan.macs - plan.dense_macs,
    }


def verify(
    config: Transform, plan: Plan, before: Trace, after: Trace, result: dict[str, Any]
) -> None:
    """Check a transformed model against the promises of `isoflop.transform`.

    Raises:
        CheckFailed: One is broken.
    """
    if before.output_shapes != after.output_shapes:
        raise CheckFailed(f"outputs are {after.output_shapes}, not {before.output_shapes}")
    if plan.dense_macs != before.table.macs or plan.unmasked_macs != after.table.macs:
        raise CheckFailed("the plan's MACs are not those of the models")
    steps = [layer.macs_per_weight for layer in plan.sparse_layers]
    allowed = max(1e-6 * plan.dense_macs, min(steps, default=0))
    if abs(plan.macs - plan.dense_macs) > allowed:
        raise CheckFailed(f"the gap of {plan.relative_gap:+.1e} is larger than one weight")
    growth = 1.0 / (1.0 - config.sparsity)
    shapes_before = {x.parameter: x for x in plan.layers}
    hidden = []
    kept = {}
    factor = math.sqrt(growth)
    ends = before.first | before.last
    dense_total = wide_total = 0
    for name, layer in shapes_before.items():
        if plan.transform != "wide" or len(layer.shape) < 2:
            continue
        depthwise = layer.dense_shape[1] == 1
        if name not in ends and not depthwise:
            dense_total += layer.source_macs
            wide_total += layer.numel * layer.macs_per_weight
        dims = [
            d
            for d in (0, 1)
            if layer.dense_shape[d] > 1
            and math.floor(layer.dense_shape[d] * factor + 0.5) > layer.dense_shape[d]
        ]
        grew = [
            abs(layer.shape[d] - factor * layer.dense_shape[d])
            <= max(1.0, 0.1 * factor * layer.dense_shape[d])
            for d in dims
        ]
        missing = len(grew) - sum(grew)
        hidden.append(missing <= (1 if name in ends else 0))
        if not hidden[-1]:
            kept[name] = f"{list(layer.dense_shape)} -> {list(layer.shape)}"
    if hidden:
        result["share"] = sum(hidden) / len(hidden)
        result["kept"] = dict(list(kept.items())[:20])
        result["hidden_ratio"] = wide_total / dense_total if dense_total else None
        if dense_total and not 0.6 * growth <= wide_total / dense_total <= 1.2 * growth:
            raise CheckFailed(
                f"hidden weights cost {wide_total / dense_total:.3f} times the dense ones, not "
                f"{growth:.3f}"
            )
        if kept:
            raise CheckFailed(
                f"{len(kept)} of {len(hidden)} weights did not grow as a whole, such as "
                + ", ".join(f"{k}: {v}" for k, v in list(kept.items())[:3])
            )


def _call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def _outputs(output: Any) -> list[Tensor]:
    return [t for t in tree_leaves(plain_output(output)) if isinstance(t, Tensor)]
