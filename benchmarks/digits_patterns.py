"""Measure the accuracy that each shape costs: `python benchmarks/digits_patterns.py`.

Trains the digits demo with each pattern. Beside it, the same layers are pruned unstructured to the
same sparsity, so that only the shape differs. Prints the mean and the standard deviation of the
test accuracy over the seeds. Exits with 1 if a run misses the exact target.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import summarize
from benchmarks.kit.recording import hide_output, list_points, print_table, silence_libraries
from benchmarks.kit.training import make_quiet_trainer
from examples.digits import DigitsClassifier, DigitsDataModule
from lightning_prune import (
    BlockPattern,
    ChannelPattern,
    NMPattern,
    PolynomialSchedule,
    PruningCallback,
    UniformAllocation,
)

# The first layer has one input channel, too few for a group of four; the last layer has ten
# outputs, too few for whole blocks of four. ERK divides blocks and unstructured weights among the
# layers; N:M is uniform. For channels, the sparsity is the fraction of the channels between layers:
# three of four parameters disappear.
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
WEIGHTS = 84_896


def train(seed: int, epochs: int, arguments: dict[str, Any]) -> float:
    """Return the test accuracy in points."""
    seed_everything(seed, verbose=False)
    model, data = DigitsClassifier(), DigitsDataModule()
    pruning = PruningCallback(schedule=PolynomialSchedule(begin=0.1, end=0.75), **arguments)
    with hide_output():
        trainer = make_quiet_trainer(pruning, max_epochs=epochs)
        trainer.fit(model, data)
        (result,) = trainer.test(model, data, verbose=False)
    target = pruning.pruner.final_sparsity
    if abs(pruning.sparsity - target) * WEIGHTS > 2:  # half a block, since only whole blocks stay
        sys.exit(f"landed on {pruning.sparsity:.6f} instead of {target}")
    return 100 * result["test_acc"]


def main() -> None:
    """Train all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of each training")
    arguments = parser.parse_args()
    silence_libraries()
    rows = []
    for name, row in ROWS.items():
        points = [train(seed, arguments.epochs, row) for seed in range(arguments.seeds)]
        rows.append((name, list_points(points), *summarize(points).cells))
    print_table(("pattern", "test accuracy of each seed", "mean", "sd"), rows)


if __name__ == "__main__":
    main()
