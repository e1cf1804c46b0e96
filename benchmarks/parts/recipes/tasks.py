"""The three trainings in which `recipes.py` compares the arms."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.kit.data import (
    Data,
    Splits,
    flatten_images,
    hold_out,
    keep_first,
    read_standardized_mnist,
    spread,
)
from benchmarks.kit.networks.attention import BytePredictor
from benchmarks.kit.networks.convolutional import BasicBlock, PooledClassifier, build_convolution
from benchmarks.kit.networks.small import build_glorot_lenet
from benchmarks.kit.text import read_library_text
from benchmarks.parts.recipes.runs import Run

POSITIONS = 32  # bytes that the transformer sees
WINDOWS = 2000  # of validation and of test
Parameters = Iterator[nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network, data and an optimizer.

    Args:
        name: Names the task.
        about: Network, data and optimizer, for the report.
        read: Returns the data of a folder; None for the standard library.
        build: Returns a new network.
        make_optimizer: Makes the optimizer of parameters with a learning rate.
        rates: The learning rates that are tried.
        steps: Optimizer steps of a training.
        batch: Samples of a batch.
        judge: The result that judges: accuracy in points, or bits a byte.
    """

    name: str
    about: str
    read: Callable[[Path | None], Splits]
    build: Callable[[], nn.Module]
    make_optimizer: Callable[..., Optimizer]
    rates: Sequence[float]
    steps: int
    batch: int
    judge: str = "accuracy"

    def score(self, run: Run) -> float:
        """Return the result that judges; higher is better."""
        return -run.bits if self.judge == "bits" else run.accuracy


def split_images(data: Data, *, train: int, validation: int) -> Splits:
    """Return the first training images, and the last training images for validation."""
    splits = hold_out(data, min(validation, len(data.train) // 4))
    return Splits(keep_first(Data(splits.train, splits.test), train).train, *splits[1:])


def read_digits(folder: Path | None) -> Splits:
    """Return MNIST as rows of pixels, with 10,000 training images held out."""
    data = flatten_images(read_standardized_mnist(Path(folder or "")))
    return split_images(data, train=50_000, validation=10_000)


def read_clothes(folder: Path | None) -> Splits:
    """Return 10,000 training images of Fashion-MNIST, with 5,000 others held out."""
    data = read_standardized_mnist(Path(folder or ""))
    return split_images(data, train=10_000, validation=5_000)


def read_text(folder: Path | None) -> Splits:
    """Return windows of the standard library."""
    train, validation, test = read_library_text(POSITIONS, folder)
    return Splits(train, spread(validation, WINDOWS), spread(test, WINDOWS))


def build_resnet() -> nn.Module:
    """Return three residual blocks with batch normalization, for a gray image."""
    stem = build_convolution(1, 16, stride=2)
    blocks = (BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2))
    return PooledClassifier(nn.Sequential(stem, *blocks), 64)


def make_sgd(parameters: Parameters, lr: float) -> Optimizer:
    """Return SGD as residual networks are trained."""
    return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def hash_data(splits: Splits) -> str:
    """Return eight hexadecimal digits that other data do not have."""
    digest = hashlib.sha256()
    for split in splits:
        for tensor in split.tensors:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


TASKS = {
    task.name: task
    for task in (
        Task(
            name="LeNet",
            about="LeNet-300-100 on MNIST, 50,000 images, Adam",
            read=read_digits,
            build=build_glorot_lenet,
            make_optimizer=partial(torch.optim.Adam, fused=True),
            rates=(1.5e-3, 4e-3, 1e-2),
            steps=1600,
            batch=128,
        ),
        Task(
            name="ResNet",
            about="three residual blocks on Fashion-MNIST, 10,000 images, SGD with momentum",
            read=read_clothes,
            build=build_resnet,
            make_optimizer=make_sgd,
            rates=(0.03, 0.1, 0.3),
            steps=390,
            batch=64,
        ),
        Task(
            name="bytes",
            about="a transformer of 2 blocks on bytes of the standard library, AdamW",
            read=read_text,
            build=partial(BytePredictor, positions=POSITIONS, width=64, depth=2, heads=4),
            make_optimizer=partial(torch.optim.AdamW, fused=True),
            rates=(3e-3, 8e-3, 2e-2),
            steps=700,
            batch=32,
            judge="bits",
        ),
    )
}
