"""Do tickets win? `python benchmarks/lottery_ticket.py --root <folder of MNIST>`.

The folder holds the four IDX files of MNIST; without it, the digits of scikit-learn are used in the
same size, and nothing is judged. LeNet-300-100 is trained in rounds of 3 epochs; each removes 20 %
of what is left, all layers in one ranking, and goes back to the initialisation. Then it is trained
for 6 epochs: the winning ticket of Frankle & Carbin (2019), https://arxiv.org/abs/1803.03635. All
that is one ``fit``. Batch 128, Adam at 1.2e-3 along a cosine that would come to 0 six epochs after
the start, and goes back with the weights.

Beside it, trained for 6 epochs each: the dense network; the same masks with fresh weights; random
masks with the same number of weights in each layer. Prints mean and standard deviation over the
seeds of the test accuracies after the first and the last of the 6 epochs. Exits with 1 if a bar is
missed.
"""

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from mnist import LEARNING_RATE, LeNet300100, Mnist, accuracy, fit, read_mnist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_prune import GlobalAllocation, MultiStepSchedule, PruningCallback, Rewind

SHARE = 0.2
EPOCHS_OF_A_ROUND = 3
EPOCHS = 6
DENSE, TICKET, FRESH, RANDOM = "dense", "winning ticket", "fresh weights", "random mask"
Masks = Mapping[str, Tensor]


class Bars(NamedTuple):
    """What is asked of the ticket, in points."""

    last: float
    above_fresh: float
    first_above_dense: float | None


BARS = {
    7: Bars(last=97.80, above_fresh=0.4, first_above_dense=0.8),
    15: Bars(last=97.20, above_fresh=1.5, first_above_dense=None),
}


class Point(NamedTuple):
    """Test accuracies after the first and the last epoch that was not a round's."""

    first: float
    last: float


class LeNet(LeNet300100):
    """The same net; its cosine is of 6 epochs, however long it is trained."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam and a cosine that ends at 0 six epochs after each start."""
        optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=True)
        steps = int(self.trainer.estimated_stepping_batches) // self.trainer.max_epochs * EPOCHS
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cosine, "interval": "step"},
        }


class Test(Callback):
    """Keeps the test accuracy after each epoch."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data
        self.accuracies: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what is right."""
        self.accuracies.append(accuracy(pl_module, self.data))


def new_net(seed: int) -> LeNet:
    """Return the net of this seed."""
    seed_everything(seed, verbose=False)
    return LeNet()


def train(net: LeNet, data: Mnist, seed: int, pruning: PruningCallback, epochs: int) -> Point:
    """Return how good the net was one and six epochs after the last round."""
    test = Test(data.test)
    fit(net, data, seed, epochs, pruning, test)
    return Point(test.accuracies[-EPOCHS], test.accuracies[-1])


def find_ticket(data: Mnist, seed: int, rounds: int) -> tuple[Point, Masks]:
    """Return what rounds of pruning and rewinding lead to, all in one fit."""
    milestones = tuple(float(EPOCHS_OF_A_ROUND * number) for number in range(1, rounds + 1))
    pruning = PruningCallback(
        sparsity=1 - (1 - SHARE) ** rounds,
        schedule=MultiStepSchedule(milestones=milestones, share=SHARE, unit="epoch"),
        allocation=GlobalAllocation(),
        rewind=Rewind(to=0),
    )
    epochs = EPOCHS_OF_A_ROUND * rounds + EPOCHS
    return train(new_net(seed), data, seed, pruning, epochs), pruning.masks


def train_masked(net: LeNet, masks: Masks, data: Mnist, seed: int) -> Point:
    """Return how good the net becomes if what is masked is never there."""
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).mul_(mask)
    return train(net, data, seed, PruningCallback(sparsity=0.0, keep_zeros=True), EPOCHS)


def shuffled(masks: Masks, seed: int) -> Masks:
    """Return masks that keep as many entries of each tensor, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
        for name, mask in masks.items()
    }


def compare(data: Mnist, seed: int, rounds: int) -> dict[str, Point]:
    """Return the ticket and what it has to beat."""
    ticket, masks = find_ticket(data, seed, rounds)
    return {
        TICKET: ticket,
        FRESH: train_masked(new_net(seed + 1000), masks, data, seed),
        RANDOM: train_masked(new_net(seed), shuffled(masks, seed), data, seed),
    }


def enlarged_digits() -> Mnist:
    """Return scikit-learn's digits of 8 x 8 in the size of MNIST."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from examples.digits_data import load_digits_splits

    def enlarged(split: Any) -> TensorDataset:
        images, labels = split[:]
        large = nn.functional.interpolate(images.view(-1, 1, 8, 8), size=(28, 28))
        return TensorDataset((large.flatten(1) - large.mean()) / large.std(), labels)

    train, _, test = load_digits_splits()
    return Mnist(enlarged(train), enlarged(test))


def mean(points: list[Point]) -> Point:
    """Return the mean of each."""
    return Point(*(statistics.mean(values) for values in zip(*points, strict=True)))


def written(points: list[Point], at: int) -> str:
    """Return mean and standard deviation."""
    values = [point[at] for point in points]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def judge(results: Mapping[tuple[int, str], list[Point]], rounds: int) -> bool:
    """Print each bar of these rounds and whether it was met; return whether all were."""
    means = {name: mean(points) for (of, name), points in results.items() if of in (0, rounds)}
    bars, ticket = BARS[rounds], means[TICKET]
    lines = [
        ("accuracy", ticket.last, bars.last),
        ("above fresh weights", ticket.last - means[FRESH].last, bars.above_fresh),
    ]
    if bars.first_above_dense is not None:
        above = ticket.first - means[DENSE].first
        lines.append(("above dense after the first epoch", above, bars.first_above_dense))
    for what, value, bar in lines:
        verdict = "met" if value >= bar else "MISSED"
        print(f"{rounds} rounds, {what}: {value:.2f} (asked for: {bar:.2f}) {verdict}")
    return all(value >= bar for _, value, bar in lines)


def main() -> None:
    """Train all, print a table, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of the four files")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--rounds", nargs="+", type=int, default=sorted(BARS))
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    data = read_mnist(arguments.root) if arguments.root else enlarged_digits()
    results: dict[tuple[int, str], list[Point]] = {}

    def note(rounds: int, name: str, point: Point) -> None:
        results.setdefault((rounds, name), []).append(point)
        took = time.perf_counter() - start
        print(f"{took:6.0f} s: {rounds} rounds, {name}: {point[0]:.2f}, {point[1]:.2f}", flush=True)

    start = time.perf_counter()
    for seed in range(arguments.seeds):
        dense = PruningCallback(sparsity=0.0)
        note(0, DENSE, train(new_net(seed), data, seed, dense, EPOCHS))
        for rounds in arguments.rounds:
            for name, point in compare(data, seed, rounds).items():
                note(rounds, name, point)

    table = Table("rounds", "weights left", "", "after the first epoch", "after the sixth")
    for (rounds, name), points in results.items():
        left = f"{(1 - SHARE) ** rounds:.4f}"
        table.add_row(str(rounds), left, name, written(points, 0), written(points, 1))
    Console(width=100).print(table)
    if arguments.root:
        verdicts = [judge(results, rounds) for rounds in arguments.rounds if rounds in BARS]
        sys.exit(int(not all(verdicts)))


if __name__ == "__main__":
    main()
