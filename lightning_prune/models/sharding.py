"""Modules that FSDP2 has sharded."""

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
