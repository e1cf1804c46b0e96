"""All that pruning knows of replicas and shards."""

from torch import Tensor
from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor (FSDP2, tensor parallelism)."""
    return isinstance(tensor, DTensor)
