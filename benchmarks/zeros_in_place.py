"""Do zeros alone make a dense kernel faster? `python benchmarks/zeros_in_place.py`.

Times a forward pass of one network dense and with nine weights of ten at zero, interleaved in one
run on one thread of the CPU, and prints the ratio of the medians: dense time over sparse time.
"""

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from lightning_prune import OneShotSchedule, Pruner


def network() -> nn.Module:
    """Return a few convolutions and a matrix of usual sizes."""
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


def pruned(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return a copy with nine weights of ten at zero."""
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
    """Time both, taking turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.randn(4, 3, 32, 32)
    dense = network().eval()
    models = {"dense": dense, "sparsity 0.9": pruned(dense, images)}
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, model in models.items():
                start = time.perf_counter()
                model(images)
                times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        print(f"{name}: median {1000 * statistics.median(seconds):.2f} ms")
    fast = statistics.median(times["dense"]) / statistics.median(times["sparsity 0.9"])
    print(f"dense over sparse: {fast:.2f} (1 is no faster)")


if __name__ == "__main__":
    main()
