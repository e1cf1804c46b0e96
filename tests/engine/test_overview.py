"""The table of a pruning says what share of the whole model is pruned, and what is not."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from lightning_prune import OneShotSchedule, Pruner
from lightning_prune.engine.overview import pruning_table
from tests.models.adapted import LoraLinear
from tests.models.mixtures import Mixture


def start(model, sparsity):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    pruner = Pruner(sparsity=sparsity, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=1)
    return optimizer, pruner


def test_the_sparsity_of_the_whole_model_and_the_share_of_each_reason_are_printed():
    optimizer, pruner = start(Mixture(), {"*": 0.5, "*shared*": None})
    assert pruning_table(pruner).notes == [
        "whole model: 1,352 weights, sparsity 0.0000, final 0.4260",
        "dense (router): gate.weight, shared_expert_gate.weight; 0.0296 of all weights",
        "dense (not named *weight*): experts.gate_up_proj_bias; 0.0710 of all weights",
        "dense (sparsity null): shared_expert.gate_proj.weight; 0.0473 of all weights",
    ]
    pruner.before_step(optimizer)
    assert pruning_table(pruner).notes[0].endswith("sparsity 0.4260, final 0.4260")


def test_frozen_weights_under_adapters_come_with_a_warning_about_merging():
    _, pruner = start(LoraLinear(), {"*base_layer*": 0.5})
    assert pruning_table(pruner).notes[1:3] == [
        "pruned without training: base_layer.weight",
        "merging the adapters into pruned weights would fill the zeros; merge_sparse of "
        "lightning_prune.integrations.peft keeps them",
    ]


def test_a_table_of_nothing_but_dense_weights_is_printed():
    _, pruner = start(nn.ModuleList([LoraLinear(), nn.Linear(2, 2)]), {"1": 0.0})
    assert pruning_table(pruner).rows[-1][-1] == "0.0000"


class Encoder(nn.Module):
    """Layers with the long names of a large model."""

    def __init__(self, layers):
        super().__init__()
        made = (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(layers))
        self.pretrained_encoder_of_text = nn.ModuleList(made)
        self.head = nn.Linear(8, 40)


def print_short(pruner, width):
    file = io.StringIO()
    Console(file=file, width=width).print(pruning_table(pruner, "To be pruned", is_short=True))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_short_table_of_a_large_model_has_thirty_lines_at_most(width):
    _, pruner = start(Encoder(layers=24), 0.5)
    assert len(print_short(pruner, width)) <= 30


def test_layers_of_equal_numbers_share_a_row_that_counts_them_together():
    _, pruner = start(Encoder(layers=3), 0.5)
    lines = print_short(pruner, 120)
    row = next(line for line in lines if ".linear1" in line)
    assert "text.{0..2}.linear1" in row
    assert "384" in row  # 3 x 16 x 8
    assert any("table: full" in line for line in lines)
    assert len(pruning_table(pruner).rows) == len(pruner.groups) + 1


def test_a_short_table_of_a_small_model_is_the_full_table():
    _, pruner = start(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), 0.5)
    short, full = pruning_table(pruner, is_short=True), pruning_table(pruner)
    assert (short.columns, short.rows) == (full.columns, full.rows)
