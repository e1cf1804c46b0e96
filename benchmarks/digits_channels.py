"""Half of a network's channels gone, and what it buys: `python benchmarks/digits_channels.py`.

Trains a small convolutional network dense and with half of its channels pruned while it learns, for
the same budget and each seed; removes the pruned channels; writes the dense and the smaller network
as ONNX files and the smaller one in 8 bits, too; and measures accuracy and latency of the files in
ONNX Runtime on one thread, in turns. Latency is that of one image, of the first seed.

The data are the digits of scikit-learn, or with ``--root <folder of MNIST>`` the four IDX files of
MNIST, where an image of the test set is 0.01 points and not 0.28.

Exits with 1 if the smaller network is less than 1.8 times as fast, if it is more than 0.5 points
less accurate than the dense one, if 8 bits cost more than another 0.5 points, or if their file is
larger than a sixth of the dense one.
"""

import argparse
import contextlib
import io
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lightning_prune import ChannelPattern, PruningCallback, export_onnx, quantize_onnx, shrink
from lightning_prune.deploy.onnx_runtime import open_session, run_session
from lightning_prune.reporting.latency import Contest, Latency, measured

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.mnist import read_mnist
from examples.digits_data import load_digits_splits

LEAST_SPEEDUP = 1.8
ALLOWED_POINTS = 0.5
LARGEST_FILE = 1 / 6
BATCH = 128
CALIBRATION = 512  # images


class Data(NamedTuple):
    """Images ``(n, 1, side, side)`` with their labels."""

    train: TensorDataset
    test: TensorDataset


class Convolutions(LightningModule):
    """Three convolutions and two linear layers; it knows nothing of pruning.

    Args:
        side: Height and width of an image.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 1, side, side)
        layers: list[nn.Module] = []
        first = 2 if side > 16 else 1
        for inputs, outputs, stride in ((1, 32, first), (32, 64, 2), (64, 64, 1)):
            layers.append(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(64 * (side // (2 * first)) ** 2, 128), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return ten logits an image."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and a cosine that ends at 0 with the last step."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def read(root: Path | None) -> Data:
    """Return MNIST, or without a folder the digits; what is not for the test is for training."""
    if root is None:
        train, validation, test = load_digits_splits()
        both = (torch.cat(pair) for pair in zip(train.tensors, validation.tensors, strict=True))
        return Data(TensorDataset(*both), test)

    def square(split: TensorDataset) -> TensorDataset:
        images, labels = split.tensors
        return TensorDataset(images.view(-1, 1, 28, 28), labels)

    return Data(*map(square, read_mnist(root)))


def train(data: Data, seed: int, epochs: int, sparsity: float) -> Convolutions:
    """Return the network after training, its pruned channels still there."""
    seed_everything(seed, verbose=False)
    model = Convolutions(data.train.tensors[0].shape[-1])
    pruning = PruningCallback(sparsity=sparsity, pattern=ChannelPattern(round_to=8))
    order = RandomSampler(data.train, generator=torch.Generator().manual_seed(seed))
    loader = DataLoader(
        data.train, batch_size=None, sampler=BatchSampler(order, BATCH, drop_last=False)
    )
    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(
            max_epochs=epochs,
            callbacks=[pruning],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, loader)
    if pruning.sparsity != sparsity:
        sys.exit(f"landed on {pruning.sparsity:.6f} instead of {sparsity}")
    return model.eval()


def write(dense: Convolutions, pruned: Convolutions, data: Data, folder: Path) -> dict[str, Path]:
    """Write the files and return them by what they are."""
    files = {name: folder / f"{name}.onnx" for name in ("dense", "shrunk", "shrunk, int8")}
    export_onnx(dense, files["dense"])
    export_onnx(shrink(pruned), files["shrunk"])
    calibration = data.train.tensors[0][:CALIBRATION].split(BATCH)
    quantize_onnx(files["shrunk"], files["shrunk, int8"], calibration)
    return files


def accuracy(file: Path, data: TensorDataset) -> float:
    """Return the accuracy of a file in points."""
    images, labels = data.tensors
    opened = open_session(file, threads=1)
    logits = torch.cat([run_session(opened, [batch])[0] for batch in images.split(1000)])
    return 100 * float((logits.argmax(1) == labels).double().mean())


def latency(dense: Path, other: Path, image: Tensor, blocks: int) -> Latency:
    """Let two files take turns with one image."""
    first, second = (open_session(file, threads=1) for file in (dense, other))
    given = {first.get_inputs()[0].name: image.numpy()}
    return measured(
        Contest(
            runtime="ONNX Runtime",
            device="cpu",
            threads=1,
            dense=lambda: first.run(None, given),
            pruned=lambda: second.run(None, given),
        ),
        blocks,
        lambda: None,
    )


def judge(
    accuracies: Mapping[str, list[float]], sizes: Mapping[str, int], faster: Mapping[str, Latency]
) -> bool:
    """Print the table; return whether every bar was met."""
    table = Table(
        "file", "bytes", "test accuracy of each seed", "mean", "sd", "ms", "times as fast"
    )
    for name, points in accuracies.items():
        spread = statistics.stdev(points) if len(points) > 1 else 0.0
        each = ", ".join(f"{point:.2f}" for point in points)
        row = (name, f"{sizes[name]:,}", each, f"{statistics.mean(points):.2f}", f"{spread:.2f}")
        if name in faster:
            its = faster[name]
            milliseconds = f"{1000 * its.pruned.median:.3f}"
            table.add_row(*row, milliseconds, f"{its.speedup:.2f} ({its.low:.2f}-{its.high:.2f})")
        else:
            milliseconds = f"{1000 * faster['shrunk'].dense.median:.3f}"
            table.add_row(*row, milliseconds, "1")
    Console(width=120).print(table)
    dense, shrunk, integers = (statistics.mean(points) for points in accuracies.values())
    met = [
        (f"{faster['shrunk'].speedup:.2f} times as fast", faster["shrunk"].speedup, LEAST_SPEEDUP),
        (f"removing half costs {dense - shrunk:.2f} points", ALLOWED_POINTS, dense - shrunk),
        (f"8 bits cost {shrunk - integers:.2f} more", ALLOWED_POINTS, shrunk - integers),
        (
            f"their file is 1/{sizes['dense'] / sizes['shrunk, int8']:.1f} of the dense one",
            LARGEST_FILE,
            sizes["shrunk, int8"] / sizes["dense"],
        ),
    ]
    for said, large, small in met:
        print(f"{said}: {'as asked' if large >= small else 'NO, that is not enough'}")
    return all(large >= small for _, large, small in met)


def main() -> None:
    """Train, write, measure, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="the folder of MNIST; else scikit-learn's digits")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--epochs", type=int, help="by default 4 on MNIST and 30 on the digits")
    parser.add_argument("--images", type=int, help="to train on, the first; by default all")
    parser.add_argument("--blocks", type=int, default=51, help="pairs of blocks of calls to time")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    data = read(arguments.root)
    data = Data(TensorDataset(*data.train[: arguments.images]), data.test)
    epochs = arguments.epochs or (4 if arguments.root else 30)
    accuracies: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    faster: dict[str, Latency] = {}
    for seed in range(arguments.seeds):
        dense, pruned = (train(data, seed, epochs, sparsity) for sparsity in (0.0, 0.5))
        with tempfile.TemporaryDirectory() as folder:
            files = write(dense, pruned, data, Path(folder))
            for name, file in files.items():
                accuracies.setdefault(name, []).append(accuracy(file, data.test))
                sizes.setdefault(name, file.stat().st_size)
                if name != "dense" and name not in faster:
                    image = data.test.tensors[0][:1]
                    faster[name] = latency(files["dense"], file, image, arguments.blocks)
        reached = ", ".join(f"{name} {points[-1]:.2f}" for name, points in accuracies.items())
        print(f"seed {seed}: {reached}", flush=True)
    sys.exit(int(not judge(accuracies, sizes, faster)))


if __name__ == "__main__":
    main()
