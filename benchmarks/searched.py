"""Measure what a search gains over a single sparsity: `python benchmarks/searched.py`.

For each seed, trains a small convolutional network. Searches for the fewest parameters that cost at
most a tolerance of the validation accuracy, without training. The pruned network is read from the
checkpoint that the search writes, and measured on validation and test images. It is compared with
the highest single sparsity of all tensors within the tolerance, in steps of 0.05, whose batch
normalizations get new statistics too.

The data are the digits of scikit-learn, or MNIST or Fashion-MNIST with ``--root <folder of the four
IDX files>`` (Debian's package ``dataset-fashion-mnist`` has them). Of these, the last 10,000
training images are for validation.

Exits with 1 in two cases:

- The searched network loses more than the tolerance on validation images.
- It has more parameters than the network of the best single sparsity within the tolerance.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.data import make_loader, read_mnist
from benchmarks.kit.judging import Bar, finish_with_all
from benchmarks.kit.networks.small import build_convolutions
from benchmarks.kit.recording import hide_output, print_table, silence_libraries
from benchmarks.kit.training import make_quiet_trainer, measure_accuracy
from examples.digits_data import load_digits_splits
from lightning_prune import (
    ChannelPattern,
    PruningCallback,
    SearchReport,
    UniformAllocation,
    UnstructuredPattern,
    prune_once,
    search_sparsities,
    shrink,
)

BATCH = 64
VALIDATION = 10_000
ROUNDING = 1e-4  # points; a metric is a float32
SINGLE = [round(0.05 * step, 2) for step in range(1, 20)] + [0.98]
PATTERNS = {"unstructured": UnstructuredPattern(), "channels": ChannelPattern(round_to=4)}


class Splits(NamedTuple):
    """Images ``(n, 1, side, side)`` with their labels."""

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


class ValidatedClassifier(LightningModule):
    """A network that learns by cross-entropy, and logs the validation accuracy.

    Args:
        data: The images.
        seed: Decides the order of the training images.
    """

    def __init__(self, data: Splits, seed: int) -> None:
        super().__init__()
        side = data.train.tensors[0].shape[-1]
        self.data, self.seed, self.net = data, seed, build_convolutions(side)
        self.example_input_array = torch.zeros(1, 1, side, side)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        is_right = (self(images).argmax(1) == labels).float()
        self.log("val_acc", is_right.mean(), batch_size=len(labels))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and a cosine to 0, which moves at each step."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        """Return shuffled training images."""
        return make_loader(self.data.train, BATCH, self.seed)

    def val_dataloader(self) -> DataLoader:
        """Return the validation images."""
        return DataLoader(self.data.validation, batch_size=1000)


class Result(NamedTuple):
    """A pruned network: the remaining parameters, and the accuracies in points."""

    name: str
    parameters: int
    validation: float
    test: float


def read_splits(root: Path | None) -> Splits:
    """Return the digits, or the images of a folder."""
    if root is None:
        return Splits(*load_digits_splits())
    train, test = read_mnist(root)
    return Splits(TensorDataset(*train[:-VALIDATION]), TensorDataset(*train[-VALIDATION:]), test)


def count_parameters(model: ValidatedClassifier, pattern: str) -> int:
    """Return the parameters that are not zero, or that remain when channels are removed."""
    if pattern == "channels":
        return sum(parameter.numel() for parameter in shrink(model).parameters())
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


def measure(name: str, model: ValidatedClassifier, pattern: str) -> Result:
    """Return the size and the accuracies of a network."""
    validation, test = (
        measure_accuracy(model.net, *split.tensors)
        for split in (model.data.validation, model.data.test)
    )
    return Result(name, count_parameters(model, pattern), validation, test)


def try_single_sparsities(
    dense: dict[str, Tensor], data: Splits, seed: int, pattern: str
) -> Iterator[Result]:
    """Yield the network at each single sparsity."""
    for sparsity in SINGLE:
        model = ValidatedClassifier(data, seed)
        model.load_state_dict(dense)
        pruning = PruningCallback(
            sparsity=sparsity, allocation=UniformAllocation(), pattern=PATTERNS[pattern]
        )
        with hide_output():
            prune_once(make_quiet_trainer(pruning), model)
        yield measure(f"single {sparsity:g}", model, pattern)


def search(
    dense: dict[str, Tensor], data: Splits, seed: int, pattern: str, tolerance: float
) -> tuple[Result, SearchReport]:
    """Return the network of the search, as the checkpoint holds it."""
    model = ValidatedClassifier(data, seed)
    model.load_state_dict(dense)
    trainer = make_quiet_trainer(PruningCallback(pattern=PATTERNS[pattern]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "search.ckpt"
        found = search_sparsities(
            trainer, model, monitor="val_acc", mode="max", tolerance=tolerance, output=file
        )
        model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    return measure("searched", model, pattern), found


def run(data: Splits, arguments: argparse.Namespace, seed: int) -> list[Bar]:
    """Train, search, compare, and return the bars of a seed."""
    seed_everything(seed, verbose=False)
    model = ValidatedClassifier(data, seed)
    make_quiet_trainer(max_epochs=arguments.epochs, limit_val_batches=0).fit(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense = measure("dense", model, arguments.pattern)
    searched, found = search(state, data, seed, arguments.pattern, arguments.tolerance)
    least = dense.validation - 100 * arguments.tolerance - ROUNDING
    singles = try_single_sparsities(state, data, seed, arguments.pattern)
    within = [dense, *(each for each in singles if each.validation >= least)]
    best = min(within, key=lambda each: each.parameters)
    print_results(seed, dense, best, searched)
    print(f"{found.sparsity}; {len(found.trials) - 1} trials of all together", flush=True)
    return [
        Bar(
            name=f"seed {seed}, points lost on validation images",
            value=dense.validation - searched.validation,
            most=100 * arguments.tolerance + ROUNDING,
        ),
        Bar(
            name=f"seed {seed}, parameters over those of the best single sparsity",
            value=searched.parameters / best.parameters,
            most=1,
        ),
    ]


def print_results(seed: int, *results: Result) -> None:
    """Print a row for each network; the first is dense."""
    print_table(
        (f"seed {seed}", "parameters", "of dense", "validation", "test"),
        [
            (
                each.name,
                f"{each.parameters:,}",
                f"{each.parameters / results[0].parameters:.4f}",
                f"{each.validation:.2f}",
                f"{each.test:.2f}",
            )
            for each in results
        ],
    )


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of the four files; else the digits")
    parser.add_argument("--pattern", choices=[*PATTERNS], default="unstructured")
    parser.add_argument("--tolerance", type=float, default=0.01, help="of the accuracy, in [0, 1]")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, help="by default 4, and 30 on the digits")
    arguments = parser.parse_args()
    arguments.epochs = arguments.epochs or (4 if arguments.root else 30)
    return arguments


def main() -> None:
    """Measure all seeds, and judge."""
    arguments = read_arguments()
    silence_libraries()
    data = read_splits(arguments.root)
    finish_with_all([bar for seed in range(arguments.seeds) for bar in run(data, arguments, seed)])


if __name__ == "__main__":
    main()
