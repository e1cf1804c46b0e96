"""Modules that FSDP has sharded."""

from typing import Any

import torch
from torch import nn

from lightning_prune.models.torch_floors import TorchFloor


def reshard(model: nn.Module) -> None:
    """Let FSDP2 modules show the parameters that are trained: a forward alone leaves others."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def find_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module as the user wrote it: FSDP2 puts a class in front."""
    kind = type(module)
    if not torch.distributed.is_available():
        return kind
    from torch.distributed.fsdp import FSDPModule

    own = (each for each in kind.__mro__ if not issubclass(each, FSDPModule))
    return next(each for each in own if issubclass(each, nn.Module))


def refuse_flat_parameters(model: nn.Module) -> None:
    """Refuse a model whose parameters FSDP1 has flattened.

    Raises:
        ValueError: If a module is one of FSDP1.
    """
    for name, module in model.named_modules():
        if any(each.__name__ == "FullyShardedDataParallel" for each in type(module).__mro__):
            raise ValueError(
                "need parameters that keep their shape, got FullyShardedDataParallel at "
                f"'{name or 'the model'}', which flattens them; shard by fully_shard (FSDP2), with "
                "Accelerate by fsdp_version=2"
            )


def check_chunks(parameter: Any) -> None:
    """Refuse a parameter whose parts an older torch puts together in a wrong order.

    Raises:
        ValueError: If FSDP2 cuts the chunks of tensor parallelism into parts of unequal length, and
            torch is too old: a whole checkpoint would have the rows in a wrong order.
    """
    for axis, placement in enumerate(getattr(parameter, "placements", ())):
        parts = getattr(placement, "split_factor", 0) * parameter.device_mesh.size(axis)
        if parts and parameter.shape[placement.dim] % parts:
            TorchFloor.UNEVEN_SHARDS.check()
