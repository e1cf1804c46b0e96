"""Pruning with Lightning Fabric: `python -m examples.fabric`."""

import argparse

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from examples.digits_data import accuracy, convolutional_net, load_digits_splits
from lightning_prune import Pruner


def main() -> None:
    """Train, prune nine weights of ten meanwhile, and test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs

    fabric = Fabric(devices=1)
    fabric.launch()
    fabric.seed_everything(0)
    train, validation, test = load_digits_splits()
    net = convolutional_net()
    model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=3e-3))
    loader = fabric.setup_dataloaders(DataLoader(train, batch_size=32, shuffle=True))

    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=epochs * len(loader), hook=True)
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            fabric.backward(nn.functional.cross_entropy(model(images), labels))
            optimizer.step()
        reached = accuracy(model, validation)
        fabric.print(f"epoch {epoch}: accuracy {reached:.4f} at sparsity {pruner.sparsity:.4f}")
    pruner.detach()

    reached = accuracy(model, test)
    fabric.print(f"test accuracy {reached:.4f} at sparsity {pruner.sparsity:.4f}")


if __name__ == "__main__":
    main()
