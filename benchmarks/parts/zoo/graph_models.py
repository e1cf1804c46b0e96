"""Graph networks of PyTorch Geometric, https://github.com/pyg-team/pytorch_geometric."""

from functools import partial

import torch

from benchmarks.parts.zoo.entry import Builder, Built

_NAMES = ("EdgeCNN", "GAT", "GCN", "GIN", "GraphSAGE")
_NODES, _EDGES, _FEATURES = 20, 60, 16


def list_builders() -> dict[str, Builder]:
    """Return a builder for each network, by name."""
    return {name: partial(_build, name) for name in _NAMES}


def _build(name: str) -> Built:
    from torch_geometric.nn import models

    model = getattr(models, name)(_FEATURES, 32, num_layers=3, out_channels=4)
    return model, (torch.randn(_NODES, _FEATURES), torch.randint(_NODES, (2, _EDGES)))
