import torch
from torch import nn

from lightning_prune.engine.ownership import Owners


def test_a_parameter_that_an_optimizer_gains_is_news_once():
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizers = torch.optim.SGD([first], lr=0.1), torch.optim.SGD([second], lr=0.1)
    owners = Owners(optimizers)
    optimizers[1].add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert [owners.has_grown(index) for index in (0, 1)] == [False, True]
    owners.look_again(waiting=[])
    assert not owners.has_grown(1)


def test_a_parameter_that_waits_is_news_when_it_is_trained_again():
    parameter = nn.Parameter(torch.zeros(2))
    owners = Owners([torch.optim.SGD([parameter], lr=0.1)])
    parameter.requires_grad_(False)
    owners.look_again(waiting=[parameter])
    assert not owners.has_grown(0)
    parameter.requires_grad_(True)
    assert owners.has_grown(0)


def test_a_parameter_that_takes_the_place_of_another_is_news():
    first, second, frozen = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = torch.optim.SGD([first, second], lr=0.1)
    owners = Owners([optimizer])
    optimizer.param_groups[0]["params"][1] = frozen
    assert not owners.has_grown(0)
    frozen.requires_grad_(True)
    assert owners.has_grown(0)
    optimizer.param_groups[0]["params"][:] = [second, first]
    assert not owners.has_grown(0)
