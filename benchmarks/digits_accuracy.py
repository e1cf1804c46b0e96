"""The price of nine weights of ten: `python benchmarks/digits_accuracy.py`, from the repository.

Trains what ``configs/digits.yaml`` says, once dense (sparsity 0.0) and once at 0.9 for each seed,
and prints the test accuracies. Exits with 1 if the pruned mean is more than 1.0 points below the
dense one, or if a run does not land exactly on its target.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table

from lightning_prune import Sparsity

ROOT = Path(__file__).resolve().parent.parent
ALLOWED_POINTS = 1.0


def train(seed: int, sparsity: float, arguments: list[str]) -> float:
    """Return the test accuracy in points after training the config at this sparsity."""
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    (pruning,) = (
        callback
        for callback in config["trainer"]["callbacks"]
        if callback["class_path"] == "lightning_prune.PruningCallback"
    )
    pruning["init_args"]["sparsity"] = sparsity
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.yaml"
        path.write_text(yaml.safe_dump(config))
        cli = LightningCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            args=[
                *("--config", str(path)),
                *("--seed_everything", str(seed)),
                *("--trainer.logger", "false"),
                *("--trainer.default_root_dir", folder),
                *("--trainer.enable_progress_bar", "false"),
                *("--trainer.enable_model_summary", "false"),
                *arguments,
            ],
        )
        cli.trainer.fit(cli.model, cli.datamodule)
        counted = Sparsity()
        counted.update(cli.model)
        if counted.zeros != counted.entries - round(int(counted.entries) * (1 - sparsity)):
            sys.exit(f"landed on {counted.compute():.6f} instead of {sparsity}")
        (result,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return 100 * result["test_acc"]


def main() -> None:
    """Train all, print a table, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--epochs", type=int, help="instead of the config's")
    arguments = parser.parse_args()
    extra = ["--trainer.max_epochs", str(arguments.epochs)] if arguments.epochs else []
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(ROOT))

    accuracies = {
        sparsity: [train(seed, sparsity, extra) for seed in range(arguments.seeds)]
        for sparsity in (0.0, 0.9)
    }
    table = Table("sparsity", "test accuracy of each seed", "mean", "sd")
    for sparsity, points in accuracies.items():
        spread = statistics.stdev(points) if len(points) > 1 else 0.0
        each = ", ".join(f"{point:.2f}" for point in points)
        table.add_row(f"{sparsity}", each, f"{statistics.mean(points):.2f}", f"{spread:.2f}")
    Console().print(table)
    lost = statistics.mean(accuracies[0.0]) - statistics.mean(accuracies[0.9])
    print(f"the price of sparsity 0.9: {lost:.2f} points (allowed: {ALLOWED_POINTS})")
    sys.exit(int(lost > ALLOWED_POINTS))


if __name__ == "__main__":
    main()
