"""Weights that the model divides by a norm, on shards."""

import pytest
import torch
from torch import nn

from tests.engine.cut_nets import (
    FURTHER,
    SECTION,
    assert_same,
    by_fsdp,
    make_net,
    masks_of,
    pruned_once,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def normed_once(layout, norm, index=0):
    """Return the masks of a net under a norm, or the error that refuses it."""
    net = make_net()
    getattr(torch.nn.utils.parametrizations, norm)(net[index])
    try:
        return masks_of(pruned_once(layout(net), *FURTHER))
    except ValueError as error:
        return str(error)


@pytest.mark.works_with(
    SECTION, "`spectral_norm` and `weight_norm` by rows on shards: the same masks as in one process"
)
@pytest.mark.parametrize("norm", ["spectral_norm", "weight_norm"])
def test_a_normed_weight_has_the_masks_of_one_process(norm, two):
    whole = normed_once(lambda net: net, norm)
    for masks in two(normed_once, by_fsdp, norm):
        assert_same([FURTHER], [whole], [masks])


def by_columns(net):
    """Cut the inputs of a weight under `weight_norm`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    parts = net[2].parametrizations.weight
    for name, placement in (("original0", Replicate()), ("original1", Shard(1))):
        cut = distribute_tensor(getattr(parts, name).data, mesh, [placement])
        parts.register_parameter(name, nn.Parameter(cut))
    return net


@pytest.mark.works_with(SECTION, "`weight_norm` by rows that shards cut", refused=True)
def test_rows_of_a_weight_norm_that_shards_cut_are_refused(two):
    for error in two(normed_once, by_columns, "weight_norm", 2):
        assert "need rows that shards leave whole where the model divides by the norm of" in error
        assert '"2.parametrizations.weight.original1": null' in error
