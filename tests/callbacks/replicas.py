"""A model, its data and a Trainer for several gloo processes."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune.tensors.bits import unpack_mask

TOTAL = 16 * 34 + 34 * 4


class Net(LightningModule):
    """34 rows, which two processes share as 17 and 17, and four as 9, 9, 9 and 7."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(16, 34), nn.ReLU(), nn.Dropout(dropout), nn.Linear(34, 4)
        )

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        accuracy = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_acc", accuracy, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Sharded(Net):
    def configure_model(self):
        from torch.distributed.fsdp import FSDPModule, fully_shard
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        if isinstance(self.net, FSDPModule):
            return
        data, tensor = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
        if tensor.size() > 1:
            parallelize_module(self.net, tensor, {"0": ColwiseParallel(), "3": RowwiseParallel()})
        if data.size() > 1:
            fully_shard(self.net[0], mesh=data)
            fully_shard(self.net, mesh=data)


def loader():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 4
    x = torch.randn(64, 16, generator=generator) + 3 * nn.functional.one_hot(y, 16)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def make_trainer(folder, strategy, *callbacks, **kwargs):
    devices = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    defaults = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **{**defaults, **kwargs},
    )


def outcome(pruning, model):
    """Return whole masks and weights, on every process."""
    state = pruning.state_dict()
    masks = {
        name: unpack_mask(bits, state["shapes"][name]) for name, bits in state["masks"].items()
    }
    weights = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }
    return masks, weights


def assert_pruned(masks, weights, total=TOTAL, sparsity=0.75):
    for name, mask in masks.items():
        assert torch.equal(weights[name] != 0, mask)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(total * (1 - sparsity))


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
