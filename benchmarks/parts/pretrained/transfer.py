"""EfficientNet-Lite0, taken to Fashion-MNIST, then pruned while the dense network teaches it."""

import copy
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.kit.data import Data, FullBatches, keep_first, read_mnist
from benchmarks.kit.judging import Bar
from benchmarks.kit.recording import hide_output, write_markdown_header, write_markdown_row
from benchmarks.kit.training import Classifier, count_points, make_quiet_trainer
from benchmarks.parts.pretrained.efficientnet import load_network
from lightning_prune import (
    ChannelPattern,
    DistillationCallback,
    MacsBudget,
    PolynomialSchedule,
    PruningCallback,
    report,
    shrink,
)

CLASSES = 10
BATCH = 32
LEARNING_RATE = 1e-3
SCHEDULE = PolynomialSchedule(begin=0.0, end=0.5)
DENSE, LONGER = "dense", "dense, trained as long"
MOST_LOST = 2.0  # points, against the dense network that was trained as long
WAYS: dict[str, dict[str, Any]] = {
    "channels, half of the multiply-adds": {
        "budget": MacsBudget(keep=0.5),
        "pattern": ChannelPattern(),
    },
    "unstructured, 0.9": {"sparsity": 0.9},
}
HEADINGS = ("network", "test accuracy", "multiply-adds left", "weights left", "minutes of training")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trained network.

    Args:
        name: How it was trained.
        accuracy: That on test images, in points.
        macs: Fraction of the multiply-adds that is left, without those by zero.
        weights: Fraction of the parameters that are not zero.
        seconds: Seconds of the training.
    """

    name: str
    accuracy: float
    macs: float
    weights: float
    seconds: float

    def write_row(self) -> str:
        """Return a row of the table."""
        return write_markdown_row(
            self.name,
            f"{self.accuracy:.2f}",
            f"{self.macs:.3f}",
            f"{self.weights:.3f}",
            f"{self.seconds / 60:.1f}",
        )


def run(root: Path, images: int, tests: int, side: int, epochs: int) -> list[Bar]:
    """Transfer, train on in each way, print a table, and return the bars.

    Args:
        root: The folder of the four files of Fashion-MNIST.
        images: Number of training images.
        tests: Number of test images.
        side: Pixels of a side, after enlarging.
        epochs: Epochs of the transfer, and again of each way.
    """
    data = read_images(root, images, tests, side)
    print(
        f"\nEfficientNet-Lite0 on Fashion-MNIST: {images} training images of {side} x {side}, "
        f"{epochs} epochs of transfer and {epochs} in each way; {tests} test images\n"
    )
    print(write_markdown_header(*HEADINGS))
    dense, first = train(DENSE, load_network(CLASSES), data, epochs)
    _, longer = train(LONGER, dense, data, epochs)
    print(first.write_row(), longer.write_row(), sep="\n", flush=True)
    bars = []
    for name, options in WAYS.items():
        pruning = PruningCallback(schedule=SCHEDULE, **options)
        teacher = DistillationCallback(output="net")
        _, found = train(name, dense, data, epochs, pruning, teacher)
        print(found.write_row(), flush=True)
        lost = longer.accuracy - found.accuracy
        bars.append(Bar(name=f"points lost, {name}", value=lost, most=MOST_LOST))
    return bars


def read_images(root: Path, images: int, tests: int, side: int) -> Data:
    """Return the first images, enlarged, in three channels and in [-1, 1]."""

    def enlarge(split: TensorDataset) -> TensorDataset:
        small, labels = split.tensors
        large = nn.functional.interpolate(small, size=(side, side), mode="bilinear")
        return TensorDataset((2 * large - 1).expand(-1, 3, -1, -1).contiguous(), labels)

    train, test = keep_first(read_mnist(root), images)
    return Data(enlarge(train), enlarge(TensorDataset(*test[:tests])))


def train(
    name: str, net: nn.Module, data: Data, epochs: int, *callbacks: Callback
) -> tuple[nn.Module, Result]:
    """Return a trained copy of a network, with channels removed, and what it reached."""
    torch.manual_seed(0)
    model = Classifier(copy.deepcopy(net), partial(torch.optim.AdamW, lr=LEARNING_RATE))
    model.example_input_array = data.train.tensors[0][:1]
    start = time.perf_counter()
    with hide_output():
        trainer = make_quiet_trainer(*callbacks, max_epochs=epochs)
        trainer.fit(model, FullBatches(data.train, BATCH, seed=0))
    seconds = time.perf_counter() - start
    found = model.net.eval()
    if callbacks:
        found = shrink(found, model.example_input_array)  # single zeros stay
    bought = report(found, model.example_input_array, dense=net, latency=False, progress=False)
    left = sum(int(weights.count_nonzero()) for weights in found.parameters())
    return found, Result(
        name=name,
        accuracy=measure_accuracy(found, *data.test.tensors),
        macs=bought.total.effective_macs / bought.total.dense_macs,
        weights=left / sum(weights.numel() for weights in net.parameters()),
        seconds=seconds,
    )


@torch.no_grad()
def measure_accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy in points, batch by batch."""
    return count_points(torch.cat([net(part) for part in images.split(500)]), labels)
