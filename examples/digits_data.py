"""The handwritten digits of scikit-learn: 1,797 images of 8 x 8 pixels, without a download."""

import torch
from torch import nn
from torch.utils.data import TensorDataset


def load_digits_splits(seed: int = 0) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Return training, validation and test images ``(1, 8, 8)`` in [0, 1], with their labels.

    Args:
        seed: Decides the split of each image (60, 20 and 20 of a hundred).

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "need scikit-learn for its digits: pip install 'lightning-prune[examples]'"
        ) from error

    digits = load_digits()
    rest, test = train_test_split(
        range(len(digits.target)), test_size=0.2, random_state=seed, stratify=digits.target
    )
    train, validation = train_test_split(
        rest, test_size=0.25, random_state=seed, stratify=digits.target[rest]
    )
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    splits = [TensorDataset(images[part], labels[part]) for part in (train, validation, test)]
    return splits[0], splits[1], splits[2]


def convolutional_net() -> nn.Sequential:
    """Return a small convolutional network for these images, with ten outputs."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Return the fraction of images that a model classifies correctly."""
    model.eval()
    images, labels = data.tensors
    device = next(model.parameters()).device
    return float((model(images.to(device)).argmax(1) == labels.to(device)).float().mean())
