"""Images of handwritten digits: those of scikit-learn, and MNIST."""

import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from examples.digits_data import load_digits_splits

MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081  # of the training pixels


class Data(NamedTuple):
    """Images ``(n, 1, side, side)`` with their labels."""

    train: TensorDataset
    test: TensorDataset


class Splits(NamedTuple):
    """Samples with their answers, in three parts.

    Args:
        train: The samples for training.
        validation: The samples that decide on hyperparameters.
        test: The samples that judge.
    """

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


def read_idx(path: Path) -> Tensor:
    """Return an IDX file of bytes: two zeros, 8 (bytes), the rank, each side in four bytes, data.

    Raises:
        ValueError: If the file is no IDX file of bytes.
    """
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    start = 4 + 4 * rank
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if content[:3] != b"\0\0\x08" or len(content) != start + math.prod(shape):
        raise ValueError(f"need an IDX file of bytes, got {path}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


def read_mnist(root: Path) -> Data:
    """Return MNIST, with pixels in [0, 1].

    Args:
        root: The folder of the four files, ``train-images-idx3-ubyte.gz`` and so on.
    """

    def read_split(name: str) -> TensorDataset:
        images = read_idx(root / f"{name}-images-idx3-ubyte.gz").unsqueeze(1)
        labels = read_idx(root / f"{name}-labels-idx1-ubyte.gz")
        return TensorDataset(images / 255, labels.long())

    return Data(read_split("train"), read_split("t10k"))


def read_standardized_mnist(root: Path) -> Data:
    """Return MNIST, standardized by the mean and the deviation of the training pixels."""

    def standardize(split: TensorDataset) -> TensorDataset:
        images, labels = split.tensors
        return TensorDataset((images - MNIST_MEAN) / MNIST_DEVIATION, labels)

    return Data(*map(standardize, read_mnist(root)))


def read_digits() -> Data:
    """Return the digits of scikit-learn, 8 x 8, in [0, 1]; the validation images are left out."""
    train, _, test = load_digits_splits()
    return Data(train, test)


def read_all_digits() -> Data:
    """Return the digits of scikit-learn; the validation images are for training, too."""
    train, validation, test = load_digits_splits()
    both = (torch.cat(pair) for pair in zip(train.tensors, validation.tensors, strict=True))
    return Data(TensorDataset(*both), test)


def read_enlarged_digits() -> Data:
    """Return the digits of scikit-learn in the size of MNIST, each split standardized."""

    def enlarge(split: TensorDataset) -> TensorDataset:
        images, labels = split.tensors
        large = nn.functional.interpolate(images, size=(28, 28))
        return TensorDataset((large - large.mean()) / large.std(), labels)

    return Data(*map(enlarge, read_digits()))


def flatten_images(data: Data) -> Data:
    """Return the data with images ``(n, pixels)``."""

    def flatten(split: TensorDataset) -> TensorDataset:
        images, labels = split.tensors
        return TensorDataset(images.flatten(1), labels)

    return Data(*map(flatten, data))


def keep_first(data: Data, images: int | None) -> Data:
    """Return the data with only the first training images, or with all of them for ``None``."""
    return Data(TensorDataset(*data.train[:images]), data.test)


def hold_out(data: Data, images: int) -> Splits:
    """Return the data with the last training images, up to a number, for validation."""
    return Splits(
        TensorDataset(*data.train[:-images]), TensorDataset(*data.train[-images:]), data.test
    )


def spread(split: TensorDataset, count: int) -> TensorDataset:
    """Return a number of samples at equal distances; all samples if there are fewer."""
    kept = torch.linspace(0, len(split) - 1, min(count, len(split))).long()
    return TensorDataset(*split[kept])


def make_loader(split: TensorDataset, batch: int, seed: int) -> DataLoader:
    """Return a loader that reads a batch by a single index, and shuffles in each epoch."""
    order = RandomSampler(split, generator=torch.Generator().manual_seed(seed))
    return DataLoader(split, batch_size=None, sampler=BatchSampler(order, batch, drop_last=False))


class FullBatches:
    """Shuffled batches of equal size, without a DataLoader, which small images would wait for.

    Args:
        split: Images and labels; those that fill no batch are left out of the epoch.
        batch: Images of a batch.
        seed: Decides the order.
    """

    def __init__(self, split: TensorDataset, batch: int, seed: int) -> None:
        self.split, self.batch = split, batch
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.split) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.split), generator=self.generator)
        for index in range(len(self)):
            yield self.split[order[index * self.batch : (index + 1) * self.batch]]
