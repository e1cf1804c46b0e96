"""What a dense teacher gives to a pruned net: `python benchmarks/distillation.py`, from the root.

For each seed a dense network is trained. Then the same network is pruned, each time by the same
recipe, number of epochs, order of the data and seed, from random weights (``scratch``) and from
those of the dense network (``trained``), in three ways: alone, under the soft targets of the dense
network, and under its features (the hidden layer) as well. Prints the test accuracies and the gain
of each way over pruning alone, seed by seed.

The data are the digits that scikit-learn bundles, with the convolutional net of the demo; with
``--root`` MNIST from a folder with its four IDX files (``train-images-idx3-ubyte.gz`` and so on),
with LeNet-300-100. Exits with 1 if a run does not land exactly on its target.
"""

import argparse
import gzip
import io
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_prune import DistillationCallback, PruningCallback

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("alone", "soft targets", "soft targets and features")


class Batches:
    """Shuffled batches by indexing, which on small images is far faster than a DataLoader."""

    def __init__(self, data: TensorDataset, batch_size: int, seed: int) -> None:
        self.data, self.batch_size = data, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.data), generator=self.generator)
        for index in range(len(self)):
            yield self.data[order[index * self.batch_size : (index + 1) * self.batch_size]]


class Classifier(LightningModule):
    """Any net under cross-entropy, which knows nothing of teachers."""

    def __init__(self, net: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.net, self.learning_rate = net, learning_rate

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> dict:
        """Return AdamW and its cosine."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def lenet() -> nn.Sequential:
    """Return LeNet-300-100."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def mnist(root: Path, part: str) -> TensorDataset:
    """Return images in [0, 1] and labels of the ``train`` or ``t10k`` part."""
    pixels = gzip.decompress((root / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((root / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(-1, 1, 28, 28)
    return TensorDataset(
        images.float() / 255, torch.frombuffer(bytearray(labels), dtype=torch.uint8).long()
    )


def fit(model: Classifier, batches: Batches, epochs: int, *callbacks: Callback) -> None:
    """Train."""
    Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, batches)


@torch.no_grad()
def points(model: Classifier, test: TensorDataset) -> float:
    """Return the test accuracy in points."""
    model.eval()
    return 100 * float((model.net(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean())


def taught(way: str, arguments: argparse.Namespace, path: Path, hidden: str) -> list[Callback]:
    """Return the callback of a way."""
    if way == "alone":
        return []
    return [
        DistillationCallback(
            teacher=path,
            weight=arguments.weight,
            temperature=arguments.temperature,
            features={hidden: arguments.feature_weight} if "features" in way else None,
            output="net",
        )
    ]


def run(
    seed: int,
    make_net: Callable[[], nn.Module],
    hidden: str,
    train: TensorDataset,
    test: TensorDataset,
    arguments: argparse.Namespace,
) -> dict[tuple, float]:
    """Return the accuracies of one seed by start, sparsity and way."""

    def fresh() -> Classifier:
        torch.manual_seed(seed)
        return Classifier(make_net(), arguments.learning_rate)

    def batches() -> Batches:
        return Batches(train, arguments.batch_size, seed)

    accuracies: dict[tuple, float] = {}
    dense = fresh()
    fit(dense, batches(), arguments.epochs)
    accuracies["dense", 0.0, "alone"] = points(dense, test)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.pt"
        torch.save(dense.state_dict(), path)
        for start in arguments.starts:
            for sparsity in arguments.sparsities:
                for way in WAYS:
                    model = fresh()
                    if start == "trained":
                        model.load_state_dict(dense.state_dict())
                    pruning = PruningCallback(sparsity=sparsity)
                    fit(
                        model,
                        batches(),
                        arguments.epochs,
                        pruning,
                        *taught(way, arguments, path, hidden),
                    )
                    kept = sum(int(mask.sum()) for mask in pruning.masks.values())
                    entries = sum(mask.numel() for mask in pruning.masks.values())
                    if kept != round(entries * (1 - sparsity)):
                        sys.exit(f"kept {kept} of {entries} at sparsity {sparsity}")
                    accuracies[start, sparsity, way] = points(model, test)
    return accuracies


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def main() -> None:
    """Train all, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of MNIST's IDX files; else the digits")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.98])
    parser.add_argument("--starts", nargs="+", default=["scratch", "trained"])
    parser.add_argument("--images", type=int, help="use only so many training images")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--feature-weight", type=float, default=0.1)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(ROOT))
    from examples.digits_data import convolutional_net, load_digits_splits

    if arguments.root is None:
        train, _, test = load_digits_splits()
        make_net, hidden = convolutional_net, "net.9"
    else:
        train, test = mnist(arguments.root, "train"), mnist(arguments.root, "t10k")
        make_net, hidden = lenet, "net.4"
    if arguments.images:
        train = TensorDataset(*train[: arguments.images])

    with redirect_stdout(io.StringIO()):  # the tables of what is pruned
        runs = [
            run(seed, make_net, hidden, train, test, arguments) for seed in range(arguments.seeds)
        ]
    table = Table("start", "sparsity", "taught by", "test accuracy", "gain over alone")
    for start, sparsity, way in runs[0]:
        key, alone = (start, sparsity, way), (start, sparsity, "alone")
        gains = [one[key] - one[alone] for one in runs]
        gain = spread(gains) if way != "alone" else ""
        table.add_row(start, f"{sparsity}", way, spread([one[key] for one in runs]), gain)
    Console().print(table)
    print(f"mean ± standard deviation of {arguments.seeds} seeds, in points; gains are paired")


if __name__ == "__main__":
    main()
