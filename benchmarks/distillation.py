"""Measure the gain from a dense teacher: `python benchmarks/distillation.py`, from the root.

For each seed, trains a dense network. Then prunes the same network in three ways: alone, under the
soft targets of the dense network, and under its features (the hidden layer) as well. Recipe,
epochs, order of the data and seed are always the same. Each way starts from random weights
(``scratch``) and from the dense weights (``trained``). Prints the test accuracies, and the gain of
each way over pruning alone, seed by seed.

The data are the digits of scikit-learn, with the convolutional net of the demo. With ``--root``
they are the four IDX files of MNIST (``train-images-idx3-ubyte.gz`` and so on), with LeNet-300-100.
Exits with 1 if a run misses the exact target.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.data import Data, FullBatches, keep_first, read_digits, read_mnist
from benchmarks.kit.judging import summarize
from benchmarks.kit.networks.small import build_lenet
from benchmarks.kit.recording import hide_output, print_table, silence_libraries
from benchmarks.kit.training import Classifier, make_quiet_trainer, measure_accuracy
from examples.digits_data import convolutional_net
from lightning_prune import DistillationCallback, PruningCallback

ALONE, SOFT, FEATURES = "alone", "soft targets", "soft targets and features"
WAYS = (ALONE, SOFT, FEATURES)
Key = tuple[str, float, str]  # start, sparsity and way


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, and the network that learns it.

    Args:
        data: The images.
        build_net: Builds the network.
        hidden: Name of the hidden layer, as the classifier holds it.
    """

    data: Data
    build_net: Callable[[], nn.Module]
    hidden: str


def read_task(root: Path | None) -> Task:
    """Return the digits, or MNIST if the folder is given."""
    if root is None:
        return Task(data=read_digits(), build_net=convolutional_net, hidden="net.9")
    return Task(
        data=read_mnist(root),
        build_net=lambda: nn.Sequential(nn.Flatten(), *build_lenet()),
        hidden="net.4",
    )


def make_teacher(
    way: str, path: Path, hidden: str, arguments: argparse.Namespace
) -> list[Callback]:
    """Return the callback of a way.

    Args:
        way: The way.
        path: File with the weights of the dense network.
        hidden: Name of the hidden layer.
        arguments: The arguments of the command line.
    """
    if way == ALONE:
        return []
    return [
        DistillationCallback(
            teacher=path,
            weight=arguments.weight,
            temperature=arguments.temperature,
            features={hidden: arguments.feature_weight} if way == FEATURES else None,
            output="net",
        )
    ]


def build_model(task: Task, seed: int, learning_rate: float) -> Classifier:
    """Return the classifier of a seed, with random weights."""
    torch.manual_seed(seed)
    return Classifier(task.build_net(), partial(torch.optim.AdamW, lr=learning_rate))


def train(
    model: Classifier, task: Task, seed: int, arguments: argparse.Namespace, *callbacks: Callback
) -> float:
    """Train a model, and return the test accuracy in points."""
    trainer = make_quiet_trainer(*callbacks, max_epochs=arguments.epochs)
    trainer.fit(model, FullBatches(task.data.train, arguments.batch_size, seed))
    return measure_accuracy(model.net, *task.data.test.tensors)


def check_landing(pruning: PruningCallback, sparsity: float) -> None:
    """End the script if the masks do not keep exactly the number of weights that is due."""
    kept = sum(int(mask.sum()) for mask in pruning.masks.values())
    entries = sum(mask.numel() for mask in pruning.masks.values())
    if kept != round(entries * (1 - sparsity)):
        sys.exit(f"kept {kept} of {entries} at sparsity {sparsity}")


def run(seed: int, task: Task, arguments: argparse.Namespace) -> dict[Key, float]:
    """Return the accuracies of a seed by start, sparsity and way."""
    accuracies: dict[Key, float] = {}
    dense = build_model(task, seed, arguments.learning_rate)
    accuracies["dense", 0.0, ALONE] = train(dense, task, seed, arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.pt"
        torch.save(dense.state_dict(), path)
        for start in arguments.starts:
            for sparsity in arguments.sparsities:
                for way in WAYS:
                    model = build_model(task, seed, arguments.learning_rate)
                    if start == "trained":
                        model.load_state_dict(dense.state_dict())
                    pruning = PruningCallback(sparsity=sparsity)
                    teacher = make_teacher(way, path, task.hidden, arguments)
                    points = train(model, task, seed, arguments, pruning, *teacher)
                    check_landing(pruning, sparsity)
                    accuracies[start, sparsity, way] = points
    return accuracies


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of MNIST; by default the digits are used")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each training")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.98], help="targets")
    parser.add_argument(
        "--starts", nargs="+", default=["scratch", "trained"], help="weights at the start"
    )
    parser.add_argument("--images", type=int, help="number of training images; by default all")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a batch")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at the start")
    parser.add_argument("--weight", type=float, default=1.0, help="weight of the soft targets")
    parser.add_argument("--temperature", type=float, default=4.0, help="of the soft targets")
    parser.add_argument("--feature-weight", type=float, default=0.1, help="weight of the features")
    return parser.parse_args()


def main() -> None:
    """Train all, and print a table."""
    arguments = read_arguments()
    silence_libraries()
    task = read_task(arguments.root)
    if arguments.images:
        task = Task(
            data=keep_first(task.data, arguments.images),
            build_net=task.build_net,
            hidden=task.hidden,
        )
    with hide_output():
        runs = [run(seed, task, arguments) for seed in range(arguments.seeds)]
    rows = []
    for start, sparsity, way in runs[0]:
        key, alone = (start, sparsity, way), (start, sparsity, ALONE)
        gains = [accuracies[key] - accuracies[alone] for accuracies in runs]
        gain = str(summarize(gains)) if way != ALONE else ""
        reached = summarize([accuracies[key] for accuracies in runs])
        rows.append((start, f"{sparsity}", way, str(reached), gain))
    print_table(("start", "sparsity", "taught by", "test accuracy", "gain over alone"), rows)
    print(f"mean ± standard deviation of {arguments.seeds} seeds, in points; gains are paired")


if __name__ == "__main__":
    main()
