"""What a shape costs: `python benchmarks/digits_patterns.py`, from the repository.

Trains the digits demo with each pattern and with unstructured pruning of the same layers at the
same sparsity, so that only the shape differs, and prints mean and standard deviation of the test
accuracy over the seeds. Exits with 1 if a run does not land exactly on its target.
"""

import argparse
import contextlib
import io
import logging
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from lightning_prune import (
    BlockPattern,
    ChannelPattern,
    NMPattern,
    PolynomialSchedule,
    PruningCallback,
    UniformAllocation,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.digits import DigitsClassifier, DigitsDataModule

# The first layer has one input channel, which is no group of four; the last has ten outputs, which
# are no blocks of four. Blocks are divided by ERK as unstructured weights are, N:M uniformly. Of
# channels the sparsity is that of the channels between layers: three of four parameters go.
HALF: dict[str, Any] = {"sparsity": {"*": 0.5, "net.0": None}, "allocation": UniformAllocation()}
MOST: dict[str, Any] = {"sparsity": {"*": 0.9, "net.10": None}}
ROWS: dict[str, dict[str, Any]] = {
    "dense": {"sparsity": 0.0},
    "unstructured, 0.5": HALF,
    "4:8, 0.5": {**HALF, "pattern": NMPattern(n=4, m=8)},
    "2:4, 0.5": {**HALF, "pattern": NMPattern(n=2, m=4)},
    "channels, 0.5": {"sparsity": 0.5, "pattern": ChannelPattern()},
    "unstructured, 0.9": MOST,
    "blocks of 4 x 1, 0.9": {**MOST, "pattern": BlockPattern(shape=(4, 1))},
}


def train(seed: int, epochs: int, arguments: dict[str, Any]) -> float:
    """Return the test accuracy in points."""
    seed_everything(seed, verbose=False)
    model, data = DigitsClassifier(), DigitsDataModule()
    pruning = PruningCallback(schedule=PolynomialSchedule(begin=0.1, end=0.75), **arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=[pruning],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        (result,) = trainer.test(model, data, verbose=False)
    target = pruning.pruner.final_sparsity
    if abs(pruning.sparsity - target) * 84_896 > 2:  # half a block: kept are whole blocks
        sys.exit(f"landed on {pruning.sparsity:.6f} instead of {target}")
    return 100 * result["test_acc"]


def main() -> None:
    """Train all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    table = Table("pattern", "test accuracy of each seed", "mean", "sd")
    for name, row in ROWS.items():
        points = [train(seed, arguments.epochs, row) for seed in range(arguments.seeds)]
        spread = statistics.stdev(points) if len(points) > 1 else 0.0
        each = ", ".join(f"{point:.2f}" for point in points)
        table.add_row(name, each, f"{statistics.mean(points):.2f}", f"{spread:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
