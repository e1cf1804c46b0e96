"""Modules that FSDP2 has sharded."""

import torch
from torch import nn


def reshard(model: nn.Module) -> None:
    """Let FSDP2 modules show the parameters that are trained: a forward alone leaves others."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
