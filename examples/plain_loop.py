"""Pruning in a plain PyTorch loop, without Lightning: `python -m examples.plain_loop`."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader

from examples.digits_data import accuracy, convolutional_net, load_digits_splits
from lightning_prune import Pruner


def main() -> None:
    """Train, prune nine weights of ten meanwhile, and test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    train, validation, test = load_digits_splits()
    loader = DataLoader(train, batch_size=32, shuffle=True)
    model = convolutional_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=epochs * len(loader))
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            pruner.before_step(optimizer)
            optimizer.step()
        reached = accuracy(model, validation)
        print(f"epoch {epoch}: accuracy {reached:.4f} at sparsity {pruner.sparsity:.4f}")
    pruner.detach()

    reached = accuracy(model, test)
    print(f"test accuracy {reached:.4f} at sparsity {pruner.sparsity:.4f}")


if __name__ == "__main__":
    main()
