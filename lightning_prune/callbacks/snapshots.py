"""Snapshots of a training: tensors and statistics, taken and restored in place."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_prune.callbacks.namespace import LightningModule, Trainer
from lightning_prune.models.names import named_tensors
from lightning_prune.models.sharding import reshard
from lightning_prune.tensors.shards import (
    Shard,
    find_shard,
    gather_whole,
    lay_out_like,
    local_part,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardCopy:
    """A copy of the local part of a sharded tensor.

    Args:
        local: The copy, on the CPU.
        shard: Place of the local part in the tensor.
    """

    local: Tensor
    shard: Shard

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole tensor."""
        return torch.Size(self.shard.shape)

    def gather(self) -> Tensor:
        """Return the whole tensor on the CPU; all processes must call this together."""
        return gather_whole(self.local.to(self.shard.device), self.shard).cpu()


def refuse_averages(trainer: Trainer, purpose: str) -> None:
    """Raise ValueError if a callback averages weights.

    Args:
        trainer: The Trainer, at ``on_train_start``.
        purpose: The argument that needs snapshots, for the error.
    """
    for callback in trainer.callbacks:  # type: ignore[union-attr]
        if getattr(callback, "_average_model", None) is not None:
            raise ValueError(
                f"need a training without averaged weights with {purpose}, got "
                f"{type(callback).__name__}, which would average weights from before and after "
                "going back; remove the callback"
            )


def collect_tensors(model: LightningModule, remedy: str) -> dict[str, Tensor]:
    """Return the parameters and buffers by name.

    Args:
        model: The model.
        remedy: What the user can do about a tensor without a shape.

    Raises:
        ValueError: If a tensor has no shape yet.
    """
    reshard(model)
    tensors = named_tensors(model, remove_duplicate=True)
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ValueError(f"need initialized parameters at a snapshot, got '{name}'; {remedy}")
    return tensors


def copy_to_cpu(value: Any) -> Any:
    """Return a copy on the CPU that shares no memory with the value; of shards the local part."""
    if isinstance(value, Tensor):
        copy, shard = local_part(value).to("cpu", copy=True), find_shard(value)
        return copy if shard is None else ShardCopy(local=copy, shard=shard)
    if isinstance(value, dict):
        return {key: copy_to_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_cpu(inner) for inner in value)
    return deepcopy(value)


def gather_copies(value: Any) -> Any:
    """Return a snapshot with whole tensors; with shards all processes must call this together."""
    if isinstance(value, ShardCopy):
        return value.gather()
    if isinstance(value, dict):
        return {key: gather_copies(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gather_copies(inner) for inner in value)
    return value


def restore_tensors(
    snapshot: dict[str, Tensor | ShardCopy], tensors: dict[str, Tensor], origin: str
) -> None:
    """Copy the tensors of a snapshot into the present tensors.

    Args:
        snapshot: The tensors of the snapshot.
        tensors: The present tensors.
        origin: Where the snapshot comes from, for the error.

    Raises:
        RuntimeError: If the names or shapes differ.
    """
    shapes = {name: tensor.shape for name, tensor in snapshot.items()}
    for name, shape in {name: tensor.shape for name, tensor in tensors.items()}.items():
        if shapes.pop(name, None) != shape:
            shapes[name] = shape
    if shapes:
        raise RuntimeError(
            f"need the parameters and buffers of {origin}, got other names or shapes now: "
            f"{', '.join(sorted(shapes))}"
        )
    for name, tensor in tensors.items():
        local_part(tensor).copy_(_cut(snapshot[name], tensor))


def restore_optimizer(
    state: dict[int, Any], groups: list[dict[str, Any]], optimizer: Optimizer
) -> None:
    """Restore the state and the hyperparameters of an optimizer.

    Args:
        state: The statistics of the snapshot.
        groups: The hyperparameters, with as many parameters as now.
        optimizer: The optimizer.
    """
    before = optimizer.param_groups
    parameters = [parameter for group in before for parameter in group["params"]]
    state = {index: _lay_out(values, parameters[index]) for index, values in state.items()}
    # The optimizer changes a loaded state in place.
    optimizer.load_state_dict(deepcopy({"state": state, "param_groups": groups}))
    for old, new in zip(before, optimizer.param_groups, strict=True):
        for key, value in old.items():
            if isinstance(value, Tensor):  # A compiled step reads the same tensor again.
                new[key] = value.copy_(new[key])


def _cut(saved: Tensor | ShardCopy, tensor: Tensor) -> Tensor:
    """Return the local part of a saved tensor, for a tensor of the same shape."""
    if isinstance(saved, ShardCopy):
        return saved.local
    shard = find_shard(tensor)
    return saved if shard is None else shard.cut(saved)


def _lay_out(values: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    """Return the statistics of a parameter with its layout."""
    if find_shard(parameter) is None:
        return values
    return {
        key: lay_out_like(parameter, _cut(value, parameter).to(parameter.device))
        if getattr(value, "shape", None) == parameter.shape
        else value
        for key, value in values.items()
    }
