"""Lets Accelerate cut models into shards on the CPU.

FSDP2 itself works there, by gloo. But Accelerate asks for it only where it finds several
accelerators, and trains replicas on a CPU without a word.
"""

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor


def allow_shards_on_cpu():
    """Let Accelerate take the processes on a CPU for those of several accelerators."""
    begin = PartialState.__init__

    def begin_with_shards(self, *args, **options):
        begin(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = begin_with_shards


def cut_each(layer):
    """Return a plugin of Accelerate that cuts the parameters of each layer of a class."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[layer],
        cpu_ram_efficient_loading=False,
    )


def whole(values):
    """Return the tensors by name, each of them whole; all processes call this together."""
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in values.items()
    }
