"""A layer under two names is a single layer wherever channels are pruned, removed and reported."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    ChannelPattern,
    OneShotSchedule,
    Pruner,
    adopt,
    export_onnx,
    load_sparse,
    report,
    save_sparse,
    shrink,
    shrunk_state,
)
from tests.coupled_models import MODELS, example

NAMES = ["two names", "attention under two names"]


def names_of_modules(module):
    """Return all names of each module, in the order of the first."""
    names = {}
    for name, part in module.named_modules(remove_duplicate=False):
        names.setdefault(part, []).append(name)
    return list(names.values())


def compiled(module):
    """Compile each layer that has several names, once, under all of them."""
    wrappers = {
        module.get_submodule(names[0]): torch.compile(
            module.get_submodule(names[0]), backend="eager"
        )
        for names in names_of_modules(module)
        if len(names) > 1 and "." not in names[0]
    }
    for parent in [module, *(part for part in module.children() if part not in wrappers)]:
        for name, child in list(parent._modules.items()):
            setattr(parent, name, wrappers.get(child, child))
    return module


def prune(module, steps=2):
    """Train under pruning, and return the pruner."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    pattern = ChannelPattern(round_to=1)
    pruner = Pruner(sparsity=0.5, pattern=pattern, schedule=OneShotSchedule(end=0))
    pruner.attach(module, optimizer, steps=steps, example=example())
    for _ in range(steps):
        optimizer.zero_grad()
        module(example()).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    return pruner


def outputs(module):
    with torch.no_grad():
        return module.eval()(example())


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "left"), [("two names", 8), ("attention under two names", 24)])
def test_it_is_pruned_once_and_shrunk_and_adopted_under_both_names(name, left):
    module = MODELS[name]()
    names, dense = names_of_modules(module), size(module)
    group = prune(module).groups[0]
    assert group.kept * 2 == group.size
    smaller = shrink(module, example())
    assert names_of_modules(smaller) == names
    assert max(map(len, names)) > 1
    assert len(dict(smaller.named_parameters())[group.name]) == left
    torch.testing.assert_close(outputs(smaller), outputs(module), atol=1e-5, rtol=1e-5)
    fresh = MODELS[name]()
    adopt(fresh, shrunk_state(smaller))
    assert names_of_modules(fresh) == names
    assert torch.equal(outputs(fresh), outputs(smaller))
    total = report(smaller, example(), dense=module, latency=False).total
    assert (total.dense_parameters, total.parameters) == (dense, size(smaller))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_shrunk_and_adopted_in_a_compiled_wrapper(name):
    module = MODELS[name]()
    prune(module)
    module = compiled(module)
    names = names_of_modules(module)
    smaller = shrink(module, example())
    assert names_of_modules(smaller) == names
    for fresh in (MODELS[name](), compiled(MODELS[name]())):
        adopt(fresh, shrunk_state(smaller))
        assert torch.equal(outputs(fresh), outputs(smaller))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_written_to_files_once(name, tmp_path):
    module = MODELS[name]()
    prune(module)
    smaller = shrink(module, example()).eval()
    file = export_onnx(smaller, tmp_path / "smaller.onnx", example=example())
    assert file.entries < 1.2 * size(smaller)
    save_sparse(module, tmp_path / "sparse")
    loaded = load_sparse(tmp_path / "sparse")
    assert loaded.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        assert torch.equal(loaded[key], value)


class Stack(nn.Module):
    """Layers that are found under `first`, and again in a list that stands before."""

    def __init__(self, order):
        super().__init__()
        layers = [nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)]
        self.order = order
        self.early = nn.ModuleList(layers[index] for index in order)
        self.first, self.second, self.third = layers

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()).relu())


@pytest.mark.parametrize("order", [(), (0,), (2, 1, 0), (1, 0, 1)])
def test_masks_do_not_depend_on_the_names(order):
    torch.manual_seed(0)
    module, x = Stack(order), torch.randn(4, 8)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, pattern=ChannelPattern(round_to=1))
    pruner.attach(module, optimizer, steps=4, example=x)
    for _ in range(4):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    masks = {id(module.get_parameter(name)): mask for name, mask in pruner.masks.items()}
    assert len(masks) == len(pruner.masks)
    assert [group.kept for group in pruner.groups] == [8, 8]
    first = masks[id(module.first.bias)]
    assert torch.equal(masks[id(module.second.weight)].any(0), first)
    assert [layer.out_features for layer in shrink(module, x).early] == [
        (8, 8, 3)[index] for index in order
    ]
