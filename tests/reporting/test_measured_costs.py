"""What a model really costs, after zeros in place and after the removal of channels."""

import torch
from torch import nn

from lightning_prune import shrink
from lightning_prune.reporting.measured_costs import measure_macs, measure_parameters
from tests.coupled_models import MODELS, example
from tests.reporting.reports import counted, lenet, zero
from tests.zero_channels import zeroed


def test_zeros_in_place_are_measured_as_a_report_counts_them():
    net, batch = lenet(), torch.randn(1, 784)
    zero(net[0].weight, 200_000)
    total = counted(net, batch).total
    assert measure_macs(net, batch, removed=False) == total.effective_macs == 66_200
    assert measure_parameters(net, removed=False) == total.nonzeros


def test_a_smaller_model_is_measured_with_all_entries():
    net, batch = zeroed(MODELS["plain"](), example()), example()
    smaller = shrink(net, batch)
    total = counted(smaller, batch, dense=net).total
    assert measure_macs(smaller, batch, removed=True) == total.effective_macs < total.dense_macs
    assert measure_parameters(smaller, removed=True) == total.parameters < total.dense_parameters


def test_the_model_is_left_as_it_was_and_brings_its_example():
    net = nn.Sequential(nn.Linear(4, 2), nn.Dropout()).train()
    net.example_input_array = torch.ones(3, 4)
    generator = torch.get_rng_state()
    assert measure_macs(net, removed=True) == 24
    assert torch.equal(torch.get_rng_state(), generator)
    assert net[1].training


def test_shards_are_counted_whole():
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        layer = nn.Linear(4, 4, bias=False)
        zero(layer.weight, 5)
        mesh = init_device_mesh("cpu", (1,))
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh))
        assert measure_parameters(layer, removed=False) == 11
        assert measure_parameters(layer, removed=True) == 16
    finally:
        distributed.destroy_process_group()
