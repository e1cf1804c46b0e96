"""In a graph, the operation that reads a parameter says whether the parameter is an embedding."""

import pytest
import torch
from torch import nn

from lightning_prune import Pruner


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(8, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.words(x))


class FunctionalWords(Words):
    def forward(self, x):
        return self.out(nn.functional.embedding(x, self.words.weight))


def export(model):
    return torch.export.export(model, (torch.zeros(2, dtype=torch.long),)).module()


@pytest.mark.parametrize(
    ("model", "make"),
    [(Words(), export), (FunctionalWords(), torch.fx.symbolic_trace)],
    ids=["exported", "traced"],
)
def test_an_embedding_of_a_graph_stays_dense(model, make):
    graph = make(model)
    pruner = Pruner(sparsity=0.5)
    pruner.attach(graph, torch.optim.SGD(graph.parameters(), lr=0.1), steps=4)
    assert set(pruner.masks) == {"out.weight"}
    assert pruner.dense["words.weight"] == "embedding"
