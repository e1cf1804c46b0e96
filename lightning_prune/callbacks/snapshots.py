"""Snapshots of a training: tensors and statistics, taken and restored in place."""

from copy import deepcopy
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_prune.callbacks.namespace import LightningModule, Trainer
from lightning_prune.models.names import named_tensors
from lightning_prune.tensors.shards import is_sharded


def refuse_unfit_training(trainer: Trainer, purpose: str) -> None:
    """Raise ValueError for averaged weights or sharded parameters.

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
    for name, parameter in trainer.lightning_module.named_parameters():
        if is_sharded(parameter):
            raise ValueError(
                f"need whole parameters with {purpose}, got '{name}' in shards; use DDP or a "
                "single device"
            )


def collect_tensors(model: LightningModule, remedy: str) -> dict[str, Tensor]:
    """Return the parameters and buffers by name.

    Args:
        model: The model.
        remedy: What the user can do about a tensor without a shape.

    Raises:
        ValueError: If a tensor has no shape yet.
    """
    tensors = named_tensors(model, remove_duplicate=True)
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ValueError(f"need initialized parameters at a snapshot, got '{name}'; {remedy}")
    return tensors


def copy_to_cpu(value: Any) -> Any:
    """Return a copy on the CPU that shares no memory with the value."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_cpu(inner) for inner in value)
    return deepcopy(value)


def restore_tensors(snapshot: dict[str, Tensor], tensors: dict[str, Tensor], origin: str) -> None:
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
        tensor.detach().copy_(snapshot[name])


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
    # The optimizer changes a loaded state in place.
    optimizer.load_state_dict(deepcopy({"state": state, "param_groups": groups}))
    for old, new in zip(before, optimizer.param_groups, strict=True):
        for key, value in old.items():
            if isinstance(value, Tensor):  # A compiled step reads the same tensor again.
                new[key] = value.copy_(new[key])
