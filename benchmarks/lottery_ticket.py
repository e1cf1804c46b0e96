"""Is the ticket in the initial weights? `python benchmarks/lottery_ticket.py --root <MNIST>`.

Frankle & Carbin, "The Lottery Ticket Hypothesis" (2019), https://arxiv.org/abs/1803.03635, with the
network, data and budget of ``mnist.py``: rounds of 3 epochs that remove 20 % of what is left of
each layer and go back to the initial weights, then 6 epochs. Beside each ticket the same masks are
trained for 6 epochs from fresh weights.

Prints mean and standard deviation over the seeds; exits with 1 if less than what is asked for.
"""

import argparse
import copy
import logging
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from mnist import LeNet300100, Mnist, accuracy, fit, mean_and_spread, read_mnist
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_prune import OneShotSchedule, PruningCallback, UniformAllocation

LEFT_BY_A_ROUND = 0.8


class Bar(NamedTuple):
    """What is asked of the ticket of a round, in points."""

    accuracy: float
    above_fresh: float
    above_dense_at_first: float | None  # after the first epoch of the six


BARS = {7: Bar(97.80, 0.4, 0.8), 15: Bar(97.20, 1.5, None)}


class AccuracyOfEachEpoch(Callback):
    """Looks at the test images after each epoch; nothing is chosen by it."""

    def __init__(self, data: Mnist) -> None:
        self.data = data
        self.points: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the accuracy."""
        self.points.append(accuracy(pl_module, self.data.test))


def fresh(seed: int) -> LeNet300100:
    """Return a network with the initial weights of a seed."""
    seed_everything(seed, verbose=False)
    return LeNet300100()


@torch.no_grad()
def masked(model: LeNet300100, masks: dict[str, Tensor]) -> LeNet300100:
    """Return the network with zeros where the masks say so."""
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)
    return model


def trained(model: LeNet300100, data: Mnist, seed: int, epochs: int) -> list[float]:
    """Return the accuracy after each epoch of a training that keeps the zeros there are."""
    watch = AccuracyOfEachEpoch(data)
    fit(model, data, seed, epochs, PruningCallback(sparsity=0.0, keep_zeros=True), watch)
    return watch.points


def rounds(seed: int, count: int, epochs: int, data: Mnist) -> list[dict[str, Tensor]]:
    """Return the masks after each round, the first of them before any."""
    masks: dict[str, Tensor] = {}
    found = [masks]
    for number in range(1, count + 1):
        pruning = PruningCallback(
            sparsity=1 - LEFT_BY_A_ROUND**number,
            schedule=OneShotSchedule(end=1.0),
            allocation=UniformAllocation(),
            keep_zeros=True,
        )
        fit(masked(fresh(seed), masks), data, seed, epochs, pruning)
        masks = copy.deepcopy(pruning.masks)
        found.append(masks)
    return found


def main() -> None:
    """Find tickets, train them beside fresh weights, print a table, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the four files")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--rounds", nargs="+", type=int, default=[7, 15])
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    data = read_mnist(arguments.root)
    curves: dict[tuple[int, str], list[list[float]]] = {}
    for seed in range(arguments.seeds):
        found = rounds(seed, max(arguments.rounds), arguments.epochs // 2, data)
        for number in (0, *arguments.rounds):
            starts: dict[str, Any] = {"initial": fresh(seed), "fresh": fresh(1000 + seed)}
            for name, model in starts.items():
                points = trained(masked(model, found[number]), data, seed, arguments.epochs)
                curves.setdefault((number, name), []).append(points)
    print_curves(curves)
    sys.exit(int(not all_met(curves, arguments.rounds)))


def print_curves(curves: dict[tuple[int, str], list[list[float]]]) -> None:
    """Print what each start came to, and how far it was after one epoch."""
    table = Table("rounds", "sparsity", "weights", "after one epoch", "at the end")
    for (number, name), points in curves.items():
        first, last = (mean_and_spread([curve[at] for curve in points]) for at in (0, -1))
        sparsity = f"{1 - LEFT_BY_A_ROUND**number:.3f}"
        cells = (f"{mean:.2f} ± {spread:.2f}" for mean, spread in (first, last))
        table.add_row(f"{number}", sparsity, name, *cells)
    Console().print(table)


def all_met(curves: dict[tuple[int, str], list[list[float]]], numbers: list[int]) -> bool:
    """Print what is asked of the tickets; return whether they do it."""

    def mean(number: int, name: str, at: int) -> float:
        return statistics.mean(curve[at] for curve in curves[number, name])

    met = True
    for number in set(numbers) & set(BARS):
        bar = BARS[number]
        reached = mean(number, "initial", -1)
        asked = [
            ("accuracy", reached, bar.accuracy),
            ("above fresh weights", reached - mean(number, "fresh", -1), bar.above_fresh),
        ]
        if bar.above_dense_at_first is not None:
            lead = mean(number, "initial", 0) - mean(0, "initial", 0)
            asked.append(("above dense after one epoch", lead, bar.above_dense_at_first))
        for what, value, least in asked:
            met &= value >= least
            word = "met" if value >= least else "MISSED"
            print(f"after {number} rounds, {what}: {value:.2f} (bar {least:.2f}, {word})")
    return met


if __name__ == "__main__":
    main()
