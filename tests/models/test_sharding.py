from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_prune import Pruner
from lightning_prune.models.sharding import check_chunks
from lightning_prune.models.torch_floors import TorchFloor


def cut(rows):
    """Return a stand-in for a tensor that FSDP2 cuts in two after two ranks have cut the rows."""
    placements = SimpleNamespace(dim=0, split_factor=2), SimpleNamespace(dim=0)
    mesh = SimpleNamespace(size=lambda axis: 2)
    return SimpleNamespace(shape=(rows, 3), placements=placements, device_mesh=mesh)


def test_unequal_parts_are_refused_where_torch_gathers_them_in_a_wrong_order(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    check_chunks(torch.ones(33, 3))
    check_chunks(cut(32))
    with pytest.raises(ValueError, match=TorchFloor.UNEVEN_SHARDS.refusal):
        check_chunks(cut(33))
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    check_chunks(cut(33))


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")  # of one process
@pytest.mark.works_with(
    "Replicas and shards", "FSDP1 in a plain loop, or by Accelerate", refused=True
)
def test_parameters_that_fsdp1_flattens_are_refused_by_name():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        inner = FullyShardedDataParallel(
            nn.Linear(4, 4), use_orig_params=True, device_id=torch.device("cpu")
        )
        model = nn.Sequential(inner, nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match=r"FullyShardedDataParallel at '0'.*FSDP2"):
            Pruner().attach(model, optimizer, steps=4)
    finally:
        torch.distributed.destroy_process_group()
