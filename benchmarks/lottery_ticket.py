"""Compare tickets with other masks: `python benchmarks/lottery_ticket.py --root <folder of MNIST>`.

The folder holds the four IDX files of MNIST. Without it, the digits of scikit-learn are used in the
same size, and nothing is judged. LeNet-300-100 is trained in rounds of 3 epochs. Each round removes
20 % of the weights that are left, in a ranking of all layers, and goes back to the initial weights.
Then the network is trained for 6 epochs: the winning ticket of Frankle & Carbin (2019),
https://arxiv.org/abs/1803.03635. All of this is a single ``fit``. The batch is 128. Adam at 1.2e-3
follows a cosine that reaches 0 six epochs after the start; it goes back with the weights.

Three others train for 6 epochs: the dense network, the same masks with fresh weights, and random
masks with as many weights in each layer. Prints the test accuracy after the first and the last of
the 6 epochs, as mean and standard deviation over the seeds. Exits with 1 if a bar is missed.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.data import (
    Data,
    flatten_images,
    read_enlarged_digits,
    read_standardized_mnist,
)
from benchmarks.kit.judging import Bar, finish_with_all, summarize
from benchmarks.kit.recording import print_table, silence_libraries
from benchmarks.kit.training import Classifier, measure_accuracy
from benchmarks.parts.mnist.training import EPOCHS, build_model, fit
from lightning_prune import GlobalAllocation, MultiStepSchedule, PruningCallback, Rewind

SHARE = 0.2
EPOCHS_OF_A_ROUND = 3
DENSE, TICKET, FRESH, RANDOM = "dense", "winning ticket", "fresh weights", "random mask"
Masks = Mapping[str, Tensor]


class Limits(NamedTuple):
    """The accuracy that is wanted of the ticket, in points."""

    last: float
    above_fresh: float
    first_above_dense: float | None


LIMITS = {
    7: Limits(last=97.80, above_fresh=0.4, first_above_dense=0.8),
    15: Limits(last=97.20, above_fresh=1.5, first_above_dense=None),
}


class Point(NamedTuple):
    """Test accuracies after the first and the last epoch that belong to no round."""

    first: float
    last: float


class EpochAccuracies(Callback):
    """Keeps the test accuracy after each epoch."""

    def __init__(self, split: TensorDataset) -> None:
        self.split = split
        self.accuracies: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the accuracy."""
        self.accuracies.append(measure_accuracy(pl_module.net, *self.split.tensors))


def train(model: Classifier, data: Data, seed: int, pruning: PruningCallback, epochs: int) -> Point:
    """Return the accuracies one and six epochs after the last round."""
    test = EpochAccuracies(data.test)
    fit(model, data, seed, epochs, pruning, test)
    return Point(test.accuracies[-EPOCHS], test.accuracies[-1])


def find_ticket(data: Data, seed: int, rounds: int) -> tuple[Point, Masks]:
    """Return the ticket after all rounds of pruning and rewinding, in a single fit."""
    milestones = tuple(float(EPOCHS_OF_A_ROUND * number) for number in range(1, rounds + 1))
    pruning = PruningCallback(
        sparsity=1 - (1 - SHARE) ** rounds,
        schedule=MultiStepSchedule(milestones=milestones, share=SHARE, unit="epoch"),
        allocation=GlobalAllocation(),
        rewind=Rewind(to=0),
    )
    epochs = EPOCHS_OF_A_ROUND * rounds + EPOCHS
    model = build_model(seed, cosine_epochs=EPOCHS)
    return train(model, data, seed, pruning, epochs), pruning.masks


def train_masked(start: int, masks: Masks, data: Data, seed: int) -> Point:
    """Return the accuracies of a network that never has the masked weights.

    Args:
        start: Seed of the initial weights.
        masks: The masks.
        data: The data.
        seed: Seed of the order.
    """
    model = build_model(start, cosine_epochs=EPOCHS)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    pruning = PruningCallback(sparsity=0.0, keep_zeros=True)
    return train(model, data, seed, pruning, EPOCHS)


def shuffle_masks(masks: Masks, seed: int) -> Masks:
    """Return random masks that keep as many entries of each tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
        for name, mask in masks.items()
    }


@dataclass(frozen=True, kw_only=True)
class Results:
    """The accuracies of all trainings, by rounds and name; the dense network has 0 rounds."""

    points: dict[tuple[int, str], list[Point]] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def note(self, rounds: int, name: str, point: Point) -> None:
        """Keep a result, and print it with the time since the start, apart from the table."""
        self.points.setdefault((rounds, name), []).append(point)
        took = time.perf_counter() - self.start
        text = f"{took:6.0f} s: {rounds} rounds, {name}: {point[0]:.2f}, {point[1]:.2f}"
        print(text, file=sys.stderr, flush=True)

    def find_mean(self, rounds: int, name: str) -> Point:
        """Return the means over the seeds."""
        columns = zip(*self.points[rounds, name], strict=True)
        return Point(*(summarize(values).mean for values in columns))


def train_all(data: Data, seeds: int, all_rounds: list[int]) -> Results:
    """Train the tickets and the three others with all seeds."""
    results = Results()
    for seed in range(seeds):
        model = build_model(seed, cosine_epochs=EPOCHS)
        dense = train(model, data, seed, PruningCallback(sparsity=0.0), EPOCHS)
        results.note(0, DENSE, dense)
        for rounds in all_rounds:
            ticket, masks = find_ticket(data, seed, rounds)
            results.note(rounds, TICKET, ticket)
            results.note(rounds, FRESH, train_masked(seed + 1000, masks, data, seed))
            shuffled = shuffle_masks(masks, seed)
            results.note(rounds, RANDOM, train_masked(seed, shuffled, data, seed))
    return results


def set_bars(results: Results, rounds: int) -> Iterator[Bar]:
    """Yield the bars of a ticket after so many rounds."""
    ticket, fresh = (results.find_mean(rounds, name) for name in (TICKET, FRESH))
    limits, dense = LIMITS[rounds], results.find_mean(0, DENSE)
    yield Bar(name=f"{rounds} rounds, accuracy", value=ticket.last, least=limits.last)
    yield Bar(
        name=f"{rounds} rounds, above fresh weights",
        value=ticket.last - fresh.last,
        least=limits.above_fresh,
    )
    if limits.first_above_dense is not None:
        yield Bar(
            name=f"{rounds} rounds, above dense after the first epoch",
            value=ticket.first - dense.first,
            least=limits.first_above_dense,
        )


def print_results(results: Results) -> None:
    """Print a row for each training."""
    print_table(
        ("rounds", "weights left", "", "after the first epoch", "after the sixth"),
        (
            (
                str(rounds),
                f"{(1 - SHARE) ** rounds:.4f}",
                name,
                *(str(summarize(values)) for values in zip(*points, strict=True)),
            )
            for (rounds, name), points in results.points.items()
        ),
    )


def main() -> None:
    """Train all, print a table, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of the four files")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument(
        "--rounds", nargs="+", type=int, default=sorted(LIMITS), help="rounds of each ticket"
    )
    arguments = parser.parse_args()
    silence_libraries()
    root = arguments.root
    data = flatten_images(read_standardized_mnist(root) if root else read_enlarged_digits())
    results = train_all(data, arguments.seeds, arguments.rounds)
    print_results(results)
    if root:
        judged = [rounds for rounds in arguments.rounds if rounds in LIMITS]
        finish_with_all([bar for rounds in judged for bar in set_bars(results, rounds)])


if __name__ == "__main__":
    main()
