"""Measure the accuracy that a sparsity of 0.9 costs: `python benchmarks/digits_accuracy.py`.

Trains ``configs/digits.yaml`` dense (sparsity 0.0) and at 0.9 for each seed, and prints the test
accuracies. Exits with 1 if the pruned mean is more than 1.0 points below the dense mean. It also
does if a run misses the exact target.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import Bar, finish_with_all, summarize
from benchmarks.kit.recording import list_points, print_table, silence_libraries
from lightning_prune import Sparsity

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "digits.yaml"
ALLOWED_POINTS = 1.0


def write_config(sparsity: float, path: Path) -> None:
    """Write the config of the digits with this sparsity."""
    config = yaml.safe_load(CONFIG.read_text())
    (pruning,) = (
        callback
        for callback in config["trainer"]["callbacks"]
        if callback["class_path"] == "lightning_prune.PruningCallback"
    )
    pruning["init_args"]["sparsity"] = sparsity
    path.write_text(yaml.safe_dump(config))


def make_command(config: Path, seed: int, arguments: list[str]) -> LightningCLI:
    """Return the command line of a config, ready to train.

    Args:
        config: The config.
        seed: The seed.
        arguments: Further arguments, which win over the config.
    """
    return LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        args=[
            *("--config", str(config)),
            *("--seed_everything", str(seed)),
            *("--trainer.logger", "false"),
            *("--trainer.default_root_dir", str(config.parent)),
            *("--trainer.enable_progress_bar", "false"),
            *("--trainer.enable_model_summary", "false"),
            *arguments,
        ],
    )


def train(seed: int, sparsity: float, arguments: list[str]) -> float:
    """Return the test accuracy in points after training the config at this sparsity."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.yaml"
        write_config(sparsity, path)
        cli = make_command(path, seed, arguments)
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
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, help="epochs; by default those of the config")
    arguments = parser.parse_args()
    extra = ["--trainer.max_epochs", str(arguments.epochs)] if arguments.epochs else []
    silence_libraries()
    sys.argv = sys.argv[:1]

    accuracies = {
        sparsity: [train(seed, sparsity, extra) for seed in range(arguments.seeds)]
        for sparsity in (0.0, 0.9)
    }
    summaries = {sparsity: summarize(points) for sparsity, points in accuracies.items()}
    print_table(
        ("sparsity", "test accuracy of each seed", "mean", "sd"),
        (
            (f"{sparsity}", list_points(points), *summaries[sparsity].cells)
            for sparsity, points in accuracies.items()
        ),
    )
    lost = summaries[0.0].mean - summaries[0.9].mean
    finish_with_all(
        [Bar(name="the price of sparsity 0.9, in points", value=lost, most=ALLOWED_POINTS)]
    )


if __name__ == "__main__":
    main()
