from types import SimpleNamespace

import pytest
import torch

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
