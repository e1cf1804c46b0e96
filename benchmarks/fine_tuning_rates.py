"""Measure the learning rate after one-shot pruning: `python benchmarks/fine_tuning_rates.py`.

Trains the digits demo without pruning, prunes it at once, and trains on for a sixth of the epochs,
with a cosine decay from several shares of the peak of the first training. Each result is a row of
the file of runs, from which `docs/result_tables.py` writes the table of the page on learning rates.
Seeds that the file has are not trained again.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import seed_everything

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.recording import (
    append_run,
    describe_machine,
    hide_output,
    read_runs,
    silence_libraries,
)
from benchmarks.kit.training import make_quiet_trainer
from examples.digits import DigitsClassifier, DigitsDataModule
from lightning_prune import PruningCallback, prune_once

RUNS = Path(__file__).parent / "results" / "fine_tuning_rates.csv"
SHARES = (3.0, 1.0, 0.33, 0.1, 0.03)
SPARSITIES = (0.9, 0.95, 0.98)
PEAK = 3e-3


class Run(NamedTuple):
    """A training after pruning; a share of 0 is the pruned network without training."""

    sparsity: float
    share: float
    seed: int
    accuracy: float
    versions: str


def train(model: DigitsClassifier, share: float, epochs: int, *callbacks: PruningCallback) -> None:
    """Train a model in place, from a share of the peak."""
    model.learning_rate = share * PEAK
    with hide_output():
        make_quiet_trainer(*callbacks, max_epochs=epochs).fit(model, DigitsDataModule())


def prune(dense: DigitsClassifier, sparsity: float) -> DigitsClassifier:
    """Return a copy that is pruned at once, with new statistics."""
    pruned = copy.deepcopy(dense)
    trainer = make_quiet_trainer(PruningCallback(sparsity=sparsity))
    with hide_output():
        prune_once(trainer, pruned, DigitsDataModule())
    return pruned


def measure(model: DigitsClassifier) -> float:
    """Return the test accuracy in points."""
    with hide_output():
        trainer = make_quiet_trainer()
        (result,) = trainer.test(model, DigitsDataModule(), verbose=False)
    return round(100 * result["test_acc"], 2)


def main() -> None:
    """Train, prune and train on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=24, help="of the dense training")
    parser.add_argument("--csv", type=Path, default=RUNS, help="file of runs")
    arguments = parser.parse_args()
    silence_libraries()
    versions = describe_machine()
    known = {run.seed for run in read_runs(arguments.csv, Run)}
    for seed in sorted(set(range(arguments.seeds)) - known):
        seed_everything(seed, verbose=False)
        dense = DigitsClassifier()
        train(dense, 1.0, arguments.epochs)
        for sparsity in SPARSITIES:
            pruned = prune(dense, sparsity)
            append_run(arguments.csv, Run(sparsity, 0.0, seed, measure(pruned), versions))
            for share in SHARES:
                tuned = copy.deepcopy(pruned)
                keep = PruningCallback(sparsity=0.0, keep_zeros=True)
                train(tuned, share, max(1, arguments.epochs // 6), keep)
                append_run(arguments.csv, Run(sparsity, share, seed, measure(tuned), versions))


if __name__ == "__main__":
    main()
