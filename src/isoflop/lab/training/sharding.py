"""Sharding a model over processes (FSDP2), and states that do not show it.

Checkpoints hold whole tensors, so that a run can be resumed on another number of processes, sharded
or not, and everything that reads checkpoints needs one process.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from isoflop.sparsity.sparsifier import Sparsifier
from isoflop.sparsity.weights.sharding import distribute_like, full_tensor, is_sharded


def shard(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sparsifier: Sparsifier,
    device: torch.device,
    *,
    bf16: bool,
) -> None:
    """Spread parameters, gradients, masks and optimizer state over all processes, in place.

    Each block (a module with parts, in a list or sequence of modules) is gathered when it computes,
    and let go again; what belongs to no block is gathered with the whole model.

    Args:
        model: The model, the same on all processes, in contiguous memory layout.
        optimizer: Its optimizer, before the first step.
        sparsifier: What masks it.
        device: Where this process computes.
        bf16: Gather parameters as bfloat16; gradients are summed, and weights kept, in 32 bits.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    assert not optimizer.state
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if bf16:
        # Autocast alone would keep a copy in bfloat16 of every gathered weight until the backward
        # pass. BatchNorm keeps its 32 bits, which are those of its running statistics.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                fully_shard(module, mesh=mesh)
    for module in (*blocks(model), model):
        # The root, too, is let go after the forward pass: else its parameters stay whole after an
        # evaluation, which no backward pass follows.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    sharded = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sharded[names[id(parameter)]] for parameter in group["params"]]
    sparsifier.rebind()


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the blocks of a model, inner ones first."""
    containers = (nn.ModuleList, nn.ModuleDict)
    seen = {model}
    for parent in reversed(list(model.modules())):
        if isinstance(parent, nn.ModuleList | nn.Sequential):
            for child in parent:
                if (
                    any(child.children())
                    and not isinstance(child, containers)
                    and child not in seen
                ):
                    seen.add(child)
                    yield child


def gathered(state: Any, *, keep: bool) -> Any:
    """Return a state with whole tensors, on the CPU, in place of sharded ones.

    All processes must call this.

    Args:
        state: Tensors, however nested.
        keep: Whether this process wants the result; without, None stands for sharded tensors.
    """

    def gather(tensor: Tensor) -> Tensor | None:
        if not is_sharded(tensor):
            return tensor
        full = full_tensor(tensor)
        return full.cpu() if keep else None

    return tree_map_only(Tensor, gather, state)


def spread_model_state(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state of whole tensors with those sharded that are sharded in `model`."""
    own = model.state_dict()
    return {name: distribute_like(tensor, own.get(name)) for name, tensor in state.items()}


def spread_optimizer_state(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return an optimizer's state with what is shaped like a parameter sharded like it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(parameter: Tensor, values: Any) -> Any:
        return tree_map_only(
            Tensor,
            lambda t: distribute_like(t, parameter) if t.shape == parameter.shape else t,
            values,
        )

    values = {index: part(parameters[index], value) for index, value in state["state"].items()}
    return {**state, "state": values}
