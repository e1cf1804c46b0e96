"""What each recipe keeps of the accuracy: `python benchmarks/mnist.py --root <folder of MNIST>`.

The folder holds the four IDX files of MNIST as they are distributed (``train-images-idx3-ubyte.gz``
and so on). For each recipe, sparsity and seed this trains LeNet-300-100 for the same budget: all
60,000 training images without augmentation, 6 epochs of batch 128, Adam at 1.2e-3 along a cosine to
0. The weights of all three layers are pruned (266,200), the biases stay dense. The accuracy is that
on the 10,000 test images after the last step; no model is selected.

Prints mean and standard deviation over the seeds beside the least mean that is asked for. Exits
with 1 if one is missed, if a run does not land exactly on its sparsity, or if the callback at
sparsity 0 is not bit for bit the run without it.
"""

import argparse
import contextlib
import csv
import gzip
import io
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lightning_prune import (
    Allocation,
    Criterion,
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    LAMPAllocation,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    RandomCriterion,
    Regrow,
    TaylorCriterion,
    UniformAllocation,
)

EPOCHS = 6
BATCH = 128
LEARNING_RATE = 1.2e-3
DENSE, RANDOM = "dense", "static random, ERK"


class Mnist(NamedTuple):
    """Images ``(n, 784)``, standardised, with their labels."""

    train: TensorDataset
    test: TensorDataset


class LeNet300100(LightningModule):
    """Three linear layers, Glorot normal; it knows nothing of pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam and a cosine that ends at 0 with the last step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cosine, "interval": "step"},
        }


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row: the answers to the five questions, and what is expected of them.

    Args:
        arguments: Those of `PruningCallback`, but for the sparsity, for a seed.
        by_hand: Accuracies that a hand-written loop reached, by sparsity.
        bars: The least mean accuracy, in points, by sparsity.
        above_random: By how many points at least to beat a static random mask, by sparsity.
    """

    arguments: Callable[[int], dict[str, Any]]
    by_hand: Mapping[float, str] = field(default_factory=dict)
    bars: Mapping[float, float] = field(default_factory=dict)
    above_random: Mapping[float, float] = field(default_factory=dict)


def gradual(allocation: Allocation) -> Callable[[int], dict[str, Any]]:
    """Return the cubic ramp over 10 % to 70 % of the steps."""
    schedule = PolynomialSchedule(begin=0.1, end=0.7)
    return lambda seed: {"schedule": schedule, "allocation": allocation}


def regrown(criterion: Callable[[int], Criterion]) -> Callable[[int], dict[str, Any]]:
    """Return a random mask from the first step on, of which a share moves at each update."""
    return lambda seed: {
        "schedule": OneShotSchedule(end=0),
        "allocation": ERKAllocation(),
        "regrow": Regrow(criterion=criterion(seed), first=RandomCriterion(seed=seed)),
    }


RECIPES = {
    "gradual, uniform": Recipe(arguments=gradual(UniformAllocation())),
    "gradual, global": Recipe(
        arguments=gradual(GlobalAllocation()),
        by_hand={0.95: "97.71 ± 0.09", 0.98: "96.33 ± 0.14"},
        bars={0.95: 97.40, 0.98: 95.95},
    ),
    "gradual, ERK": Recipe(
        arguments=gradual(ERKAllocation()),
        by_hand={0.95: "97.73 ± 0.10", 0.98: "96.23 ± 0.12"},
        bars={0.95: 97.40, 0.98: 95.85},
    ),
    "the default": Recipe(arguments=lambda seed: {}),
    "gradual to 75 %, ERK": Recipe(
        arguments=lambda seed: {
            "schedule": PolynomialSchedule(begin=0.1, end=0.75),
            "allocation": ERKAllocation(),
        }
    ),
    "gradual, LAMP": Recipe(
        arguments=gradual(LAMPAllocation()),
        by_hand={0.95: "97.69 ± 0.16", 0.98: "96.42 ± 0.19"},
        bars={0.95: 97.35, 0.98: 96.05},
    ),
    "one-shot in the middle, global": Recipe(
        arguments=lambda seed: {
            "schedule": OneShotSchedule(end=0.4),  # the middle of the ramp of the gradual ones
            "allocation": GlobalAllocation(),
        },
        by_hand={0.95: "97.13 ± 0.14", 0.98: "94.95 ± 0.12"},
        bars={0.95: 96.80, 0.98: 94.60},
    ),
    "SNIP": Recipe(
        arguments=lambda seed: {
            "schedule": OneShotSchedule(end=0),
            "allocation": GlobalAllocation(),
            "criterion": TaylorCriterion(),
        },
        bars={0.95: 96.15, 0.98: 93.10},
    ),
    RANDOM: Recipe(
        arguments=lambda seed: {
            "schedule": OneShotSchedule(end=0),
            "allocation": ERKAllocation(),
            "criterion": RandomCriterion(seed=seed),
        },
    ),
    "SET": Recipe(
        arguments=regrown(lambda seed: RandomCriterion(seed=seed)),
        bars={0.98: 93.00},
        above_random={0.98: 0.25},
    ),
    "RigL": Recipe(
        arguments=regrown(lambda seed: GradientCriterion()),
        bars={0.98: 93.30},
        above_random={0.98: 0.5},
    ),
}


class Run(NamedTuple):
    """One training and what came out."""

    recipe: str
    sparsity: float
    seed: int
    epochs: int
    accuracy: float
    seconds: float


def read_idx(path: Path) -> Tensor:
    """Return an IDX file of bytes: two zeros, 8 (bytes), the rank, each side in four bytes, data.

    Raises:
        ValueError: If the file is another one.
    """
    with gzip.open(path) as file:
        content = file.read()
    rank = content[3]
    start = 4 + 4 * rank
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if content[:3] != b"\0\0\x08" or len(content) != start + math.prod(shape):
        raise ValueError(f"need an IDX file of bytes, got {path}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


def read_mnist(root: Path) -> Mnist:
    """Return both splits, standardised by the mean and deviation of the training pixels."""

    def split(name: str) -> TensorDataset:
        images = read_idx(root / f"{name}-images-idx3-ubyte.gz").flatten(1)
        labels = read_idx(root / f"{name}-labels-idx1-ubyte.gz")
        return TensorDataset((images / 255 - 0.1307) / 0.3081, labels.long())

    return Mnist(split("train"), split("t10k"))


def batches(data: TensorDataset, seed: int) -> DataLoader:
    """Return a loader that reads a whole batch by one index, shuffled anew in each epoch."""
    order = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
    return DataLoader(data, batch_size=None, sampler=BatchSampler(order, BATCH, drop_last=False))


def fit(model: LeNet300100, data: Mnist, seed: int, epochs: int, *callbacks: Any) -> None:
    """Train with nothing but these callbacks, quietly."""
    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(
            max_epochs=epochs,
            callbacks=list(callbacks),
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, batches(data.train, seed))


@torch.no_grad()
def accuracy(model: LeNet300100, data: TensorDataset) -> float:
    """Return the accuracy in points."""
    images, labels = data.tensors
    return 100 * float((model.net(images).argmax(1) == labels).float().mean())


def train(name: str, sparsity: float, seed: int, epochs: int, data: Mnist) -> Run:
    """Return one run of a recipe, having checked what does not depend on luck."""
    seed_everything(seed, verbose=False)
    model = LeNet300100()
    arguments = {} if name == DENSE else RECIPES[name].arguments(seed)
    start = time.perf_counter()
    pruning = PruningCallback(sparsity=sparsity, **arguments)
    fit(model, data, seed, epochs, pruning)
    seconds = time.perf_counter() - start
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    kept = sum(int(mask.sum()) for mask in pruning.masks.values())
    nonzero = sum(int(weight.count_nonzero()) for weight in weights)
    asked = round(sum(weight.numel() for weight in weights) * (1 - sparsity))
    # What grew at a pixel that is always black is kept, and still 0.
    if (kept != asked or nonzero > kept) and name != DENSE:
        sys.exit(f"{name}: {kept} weights are left instead of {asked}")
    if name == DENSE:
        seed_everything(seed, verbose=False)
        alone = LeNet300100()
        fit(alone, data, seed, epochs)
        pairs = zip(model.parameters(), alone.parameters(), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            sys.exit("the callback at sparsity 0 is not bit for bit the run without it")
    return Run(name, sparsity, seed, epochs, accuracy(model, data.test), seconds)


def mean_and_spread(points: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation; 0 for one alone."""
    return statistics.mean(points), statistics.stdev(points) if len(points) > 1 else 0.0


def by_recipe(runs: list[Run]) -> dict[tuple[str, float], list[float]]:
    """Return the accuracies of all seeds of a recipe at a sparsity."""
    accuracies: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        accuracies.setdefault((run.recipe, run.sparsity), []).append(run.accuracy)
    return accuracies


def judge(runs: list[Run]) -> bool:
    """Print the table; return whether every bar was met."""
    accuracies = by_recipe(runs)
    table = Table("recipe", "sparsity", "accuracy", "each seed", "by hand", "bar", "met", "seconds")
    all_met = True
    for (name, sparsity), points in accuracies.items():
        recipe = RECIPES.get(name, Recipe(arguments=lambda seed: {}, by_hand={0.0: "98.28 ± 0.05"}))
        mean, spread = mean_and_spread(points)
        bars = [recipe.bars[sparsity]] if sparsity in recipe.bars else []
        if sparsity in recipe.above_random and (RANDOM, sparsity) in accuracies:
            random = statistics.mean(accuracies[RANDOM, sparsity])
            bars.append(random + recipe.above_random[sparsity])
        met = mean >= max(bars, default=0.0)
        all_met &= met
        table.add_row(
            name,
            f"{sparsity}",
            f"{mean:.2f} ± {spread:.2f}",
            ", ".join(f"{point:.2f}" for point in points),
            recipe.by_hand.get(sparsity, ""),
            ", ".join(f"{bar:.2f}" for bar in bars),
            ("yes" if met else "NO") if bars else "",
            f"{statistics.median(r.seconds for r in runs if r[:2] == (name, sparsity)):.1f}",
        )
    Console(width=140).print(table)
    return all_met


def draw(runs: list[Run], path: Path) -> None:
    """Draw accuracy over sparsity, a curve for each recipe."""
    from matplotlib.figure import Figure

    accuracies = by_recipe(runs)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    if (DENSE, 0.0) in accuracies:
        mean = statistics.mean(accuracies[DENSE, 0.0])
        axes.axhline(mean, color="black", linestyle=":", label=f"dense: {mean:.2f}")
    sparsities = sorted({run.sparsity for run in runs if run.recipe != DENSE})
    for marker, name in zip("osD^vPX*<>dhp8"[: len(RECIPES)], RECIPES, strict=True):
        present = [sparsity for sparsity in sparsities if (name, sparsity) in accuracies]
        if not present:
            continue
        means, spreads = zip(
            *(mean_and_spread(accuracies[name, sparsity]) for sparsity in present), strict=True
        )
        kept = [1 - sparsity for sparsity in present]
        axes.errorbar(kept, means, spreads, marker=marker, markersize=5, capsize=3, label=name)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks([1 - sparsity for sparsity in sparsities], map(str, sparsities))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("sparsity")
    axes.set_ylabel("test accuracy, points")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)


def read_runs(path: Path) -> list[Run]:
    """Return the runs of a table that this script has written."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Run(row[0], float(row[1]), int(row[2]), int(row[3]), float(row[4]), float(row[5]))
            for row in list(csv.reader(file))[1:]
        ]


def append_run(path: Path, run: Run) -> None:
    """Write a run at once, so that an interrupted benchmark goes on where it was."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        csv.writer(file).writerows([Run._fields, run] if new else [run])


def main() -> None:
    """Train all, print a table, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the four files")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--recipes", nargs="+", choices=(DENSE, *RECIPES), metavar="NAME")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.95, 0.98])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--csv", type=Path, help="table of all runs; those in it are not repeated")
    parser.add_argument("--plot", type=Path, help="picture of accuracy over sparsity")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    data = read_mnist(arguments.root)
    known = {run[:4]: run for run in read_runs(arguments.csv)} if arguments.csv else {}
    runs = []
    for name in arguments.recipes or (DENSE, *RECIPES):
        for sparsity in [0.0] if name == DENSE else arguments.sparsities:
            for seed in range(arguments.seeds):
                run = known.get((name, sparsity, seed, arguments.epochs))
                if run is None:
                    run = train(name, sparsity, seed, arguments.epochs, data)
                    if arguments.csv:
                        append_run(arguments.csv, run)
                runs.append(run)
    if arguments.plot:
        draw(runs, arguments.plot)
    sys.exit(int(not judge(runs)))


if __name__ == "__main__":
    main()
