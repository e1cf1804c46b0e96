"""Reports of small models, and what is read from them."""

import io

import torch
from rich.console import Console
from torch import nn

from lightning_prune import report


def counted(module, example, **arguments):
    return report(module, example, latency=False, **arguments)


def row(found, name):
    (layer,) = [layer for layer in found.layers if layer.name == name]
    return layer


def zero(weight, zeros):
    with torch.no_grad():
        weight.flatten()[:zeros] = 0
    return weight


def lenet():
    return nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def shown(found, width):
    console = Console(width=width, file=io.StringIO())
    console.print(found.table())
    return console.file.getvalue()
