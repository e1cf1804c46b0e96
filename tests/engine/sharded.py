"""A net whose weights tie, layouts that shard the net, and a training that prunes it."""

import torch
from torch import nn

from lightning_prune import PolynomialSchedule, Pruner
from tests.engine.cut_nets import masks_of

STEPS = 4
TWICE = PolynomialSchedule(begin=1, end=3, every=2, unit="step", initial=0.5, power=1)


class Channels(nn.Module):
    """Three positions of eight channels."""

    def forward(self, values):
        return values.view(-1, 8, 3)


def make_net():
    """Return a net full of ties; of 5 rows four processes hold 2, 2, 1 and 0."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 24, bias=False), Channels(), nn.Conv1d(8, 5, 3)
    )
    for parameter in net.parameters():
        parameter.data = (parameter.data * 8).round() / 8
    net.example_input_array = torch.zeros(2, 12)
    return net


def whole(net):
    """Return the net as it is, and the part of the data that this process reads."""
    return net, (0, 1)


def by_fsdp(net):
    """Cut all weights into rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    ranks = torch.distributed.get_world_size()
    mesh = init_device_mesh("cpu", (ranks,))
    fully_shard(net[0], mesh=mesh)
    return fully_shard(net, mesh=mesh), (torch.distributed.get_rank(), ranks)


def by_styles(net, mesh=None):
    """Cut the outputs of the first matrix, and the inputs of the second."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = mesh or init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    styles = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return parallelize_module(net, mesh, styles), (0, 1)


def by_both(net):
    """Cut by styles, and then all weights into rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    by_styles(net, mesh["tensor"])
    return fully_shard(net, mesh=mesh["data"]), (mesh["data"].get_local_rank(), 2)


def train(recipe, layout=whole, first=0, last=STEPS, weights=None, state=None):
    """Prune at the steps 1 and 3; return the whole masks and weights at the end, and the state.

    The inputs, and the gradients that replace those of the loss, are multiples of powers of two. So
    sums over any parts of them are exact.

    Args:
        recipe: The arguments of the Pruner.
        layout: How the net is cut.
        first: The step to begin with.
        last: The step to end before.
        weights: The whole weights to begin with.
        state: The state to begin with.
    """
    net = make_net()
    if weights is not None:
        net.load_state_dict(weights)
    net, (part, parts) = layout(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
    pruner = Pruner(**{"schedule": TWICE} | recipe)
    if state is not None:
        pruner.load_state_dict(state)
    pruner.attach(net, optimizer, steps=STEPS)
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x = torch.randint(-2, 3, (8, 12), generator=generator).float()
        net(x.chunk(parts)[part]).sum().backward()
        for parameter in net.parameters():
            parameter.grad = (parameter.detach() * 8 + step).remainder(5) / 4
        pruner.before_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
    masks, saved = masks_of(pruner), pruner.state_dict()
    weights = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in net.state_dict().items()
    }
    pruner.detach(completed=last == STEPS)
    return masks, weights, saved
