"""Time a dense kernel with zeros in its weights: `python benchmarks/zeros_in_place.py`.

Times the forward pass of a network twice: dense, and with nine of ten weights at zero. Both take
turns in the same run, on a single thread of the CPU. Prints the medians and their ratio, the dense
time over the sparse time.
"""

import argparse
import copy
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.turns import take_turns
from lightning_prune import OneShotSchedule, Pruner


def build_network() -> nn.Module:
    """Return three convolutions and a matrix of usual sizes."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(128, 256, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256 * 16, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )


def prune_copy(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return a copy with nine of ten weights at zero."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(sparsity=0.9, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=1)
    model(images).sum().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach()
    return model.eval()


def main() -> None:
    """Time both networks, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200, help="number of turns")
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.randn(4, 3, 32, 32)
    dense = build_network().eval()
    sparse = prune_copy(dense, images)
    with torch.inference_mode():
        calls = {"dense": partial(dense, images), "sparsity 0.9": partial(sparse, images)}
        times = take_turns(calls, repeats)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(f"{name}: median {1000 * seconds:.2f} ms")
    ratio = medians["dense"] / medians["sparsity 0.9"]
    print(f"dense over sparse: {ratio:.2f} (1 is no faster)")


if __name__ == "__main__":
    main()
