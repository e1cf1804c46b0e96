"""Every tensor that the package makes says where, so a default device changes nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _device

import lightning_prune
from lightning_prune import (
    ChannelPattern,
    OneShotSchedule,
    Pruner,
    Regrow,
    TaylorCriterion,
    WandaCriterion,
    export_onnx,
    load_sparse,
    report,
    save_sparse,
    shrink,
    sparsity,
)

MAKERS = {function.__name__ for function in _device._device_constructors()}
SOURCES = sorted(Path(lightning_prune.__file__).parent.rglob("*.py"))


def find_makers(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Yield the line and name of each function of torch that makes tensors, and whether it is told
    a device."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {f"torch.{n}" for n in MAKERS}:
            keywords = calls[id(node)].keywords if id(node) in calls else []
            yield node.lineno, node.attr, any(each.arg == "device" for each in keywords)


def test_every_call_that_makes_a_tensor_names_the_device():
    silent = [
        f"{path.name}:{line} torch.{name}"
        for path in SOURCES
        for line, name, says_where in find_makers(ast.parse(path.read_text()))
        if not says_where
    ]
    assert silent == []


def test_the_makers_are_those_that_a_default_device_moves():
    assert {"tensor", "as_tensor", "zeros", "arange", "full", "randn"} <= MAKERS
    with torch.device("meta"):
        assert torch.from_numpy(torch.ones(1, device="cpu").numpy()).device.type == "cpu"
        assert torch.Generator().device.type == "cpu"


def make_net() -> nn.Sequential:
    """Return a net whose middle layer has half of the channels at zero."""
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        net[0].weight[4:], net[0].bias[4:], net[2].weight[:, 4:] = 0, 0, 0
    return net


def shrink_it(net, x, folder):
    return [value for _, value in shrink(net, x).state_dict().items()]


def report_it(net, x, folder):
    return [row.effective_macs for row in report(net, x, latency=False).layers]


def export_it(net, x, folder):
    export_onnx(net, folder / "net.onnx", example=x)
    return (folder / "net.onnx").stat().st_size


def store_it(net, x, folder):
    save_sparse(net, folder / "net.safetensors")
    return list(load_sparse(folder / "net.safetensors").values())


def count_it(net, x, folder):
    return sparsity(net).item()


@pytest.mark.parametrize(
    "call", [shrink_it, report_it, export_it, store_it, count_it], ids=lambda c: c.__name__
)
def test_a_default_device_changes_no_result(call, tmp_path):
    net, x = make_net(), torch.ones(2, 6)
    expected = call(net, x, tmp_path)
    with torch.device("meta"):
        found = call(net, x, tmp_path)
    if isinstance(expected, list) and isinstance(expected[0], torch.Tensor):
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    else:
        assert found == expected


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"criterion": TaylorCriterion()},
        {"criterion": WandaCriterion()},
        {"regrow": Regrow()},
        {"pattern": ChannelPattern(round_to=1), "sparsity": 0.5},
    ],
    ids=["weights", "Taylor", "Wanda", "regrowth", "channels"],
)
def test_a_default_device_changes_no_mask(recipe):
    def prune(device: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(9, 6)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pruner = Pruner(**{"schedule": OneShotSchedule(end=1, unit="step"), **recipe})
        with torch.device(device):
            pruner.attach(net, optimizer, steps=4, example=x)
            for _ in range(4):
                optimizer.zero_grad()
                net(x).square().sum().backward()
                pruner.before_step(optimizer)
                optimizer.step()
            pruner.detach()
            return pruner.masks

    expected, found = prune("cpu"), prune("meta")
    assert expected.keys() == found.keys()
    assert all(torch.equal(mask, found[name]) for name, mask in expected.items())
