"""Measure what a repair gives back: `python benchmarks/repair.py`.

Trains two networks without batch normalization on the digits of scikit-learn, a perceptron and a
small transformer. Each is pruned without training: by magnitude, by Wanda, by Wanda with a repair
of its masks, and by a repair that chooses the masks. The error is that of the logits on test
images, squared, over the squared logits of the dense network. The table shows the mean over the
seeds. Channels are pruned by magnitude, with and without a repair.

A repair must lose at most 3/4 of the error of Wanda, at 0.5 and at 2:4. Exits with 1 if a bar is
missed. The last line is the time of a repair for each million weights, in layers of 1,024 inputs.
"""

import argparse
import statistics
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.recording import (
    describe_machine,
    hide_output,
    print_table,
    silence_libraries,
)
from benchmarks.kit.training import make_quiet_trainer
from examples.digits import DigitsClassifier, DigitsDataModule
from examples.digits_data import load_digits_splits
from lightning_prune import (
    ChannelPattern,
    NMPattern,
    PruningCallback,
    Repair,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
    prune_once,
)

UNIFORM = UniformAllocation()
ROWS = {"allocation": UNIFORM, "pattern": UnstructuredPattern(per_row=True)}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5 of each row": {**ROWS, "sparsity": 0.5},
    "2:4": {"allocation": UNIFORM, "pattern": NMPattern(), "sparsity": 0.5},
    "0.7 of each row": {**ROWS, "sparsity": 0.7},
    "channels, 0.5": {"sparsity": 0.5, "pattern": ChannelPattern()},
}
WANDA = {"criterion": WandaCriterion()}
METHODS: dict[str, tuple[dict[str, Any], Repair | None]] = {
    "magnitude": ({}, None),
    "Wanda": (WANDA, None),
    "Wanda, repaired": (WANDA, Repair()),
    "repair": ({}, Repair()),
}
BATCHES = 16


class Block(nn.Module):
    """A block of a transformer whose projections are layers of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the input and what attention and feed-forward layers add."""
        seen = self.before(x)
        parts = (
            each(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(*parts)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.widen(self.after(x))))


class Transformer(nn.Module):
    """Reads the rows of an image as words."""

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.places = nn.Parameter(torch.randn(8, width) / 10)
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return ten logits for each image."""
        x = self.embed(images.squeeze(1)) + self.places
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


def make_perceptron() -> nn.Module:
    """Return a perceptron with two hidden layers."""
    hidden = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))


NETWORKS = {"perceptron": make_perceptron, "transformer": Transformer}


def train(network: str, seed: int, epochs: int) -> DigitsClassifier:
    """Return a trained network."""
    seed_everything(seed, verbose=False)
    model = DigitsClassifier()
    model.net = NETWORKS[network]()
    with hide_output():
        make_quiet_trainer(max_epochs=epochs).fit(model, DigitsDataModule())
    return model.eval()


def prune(model: DigitsClassifier, shape: dict[str, Any], method: str) -> DigitsClassifier:
    """Return a pruned copy of a model."""
    recipe, repair = METHODS[method]
    pruned = deepcopy(model)
    with hide_output():
        trainer = make_quiet_trainer(PruningCallback(**shape, **recipe), max_epochs=1)
        prune_once(trainer, pruned, DigitsDataModule(), batches=BATCHES, repair=repair)
    return pruned.eval()


@torch.no_grad()
def measure_error(model: nn.Module, dense: nn.Module) -> float:
    """Return the squared error of the logits of test images, over the squared logits."""
    images = load_digits_splits()[2].tensors[0]
    wanted = dense(images)
    return float((model(images) - wanted).square().sum() / wanted.square().sum())


def time_million(width: int = 1024, samples: int = 2048) -> float:
    """Return the seconds of a repair for a million weights, beyond pruning by magnitude."""
    model = DigitsClassifier()
    wide = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    model.net = nn.Sequential(*wide, nn.Linear(width, 10))
    data = TensorDataset(torch.rand(samples, width), torch.zeros(samples, dtype=torch.long))
    loader = DataLoader(data, batch_size=samples // 4)
    model.train_dataloader = model.val_dataloader = lambda: loader  # type: ignore[method-assign]
    seconds = {}
    for repair in (None, Repair()):
        callback = PruningCallback(sparsity={"*": 0.5, "net.4": None}, allocation=UNIFORM)
        begin = time.perf_counter()
        with hide_output():
            prune_once(make_quiet_trainer(callback), deepcopy(model), batches=4, repair=repair)
        seconds[repair] = time.perf_counter() - begin
    return (seconds[Repair()] - seconds[None]) / (2 * width**2 / 1e6)


def compare(network: str, seeds: int, epochs: int) -> list[Bar]:
    """Print the errors of a network, and return the bars."""
    models = [train(network, seed, epochs) for seed in range(seeds)]
    rows, bars = [], []
    for name, shape in SHAPES.items():
        is_coupled = "channels" in name
        shown = ["magnitude", "repair"] if is_coupled else list(METHODS)
        errors = {
            method: statistics.mean(
                measure_error(prune(model, shape, method), model) for model in models
            )
            for method in shown
        }
        cells = [f"{errors[m]:.4f}" if m in errors else "" for m in METHODS]
        rows.append((f"{network}, {name}", *cells))
        least = "magnitude" if is_coupled else "Wanda"
        value = errors["repair"] / errors[least]
        bars.append(Bar(name=f"{network}, {name}, over {least}", value=value, most=0.75))
    print_table(("error", *METHODS), rows)
    return bars


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each training")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    silence_libraries()
    torch.set_num_threads(1)
    print(describe_machine())
    bars = []
    for network in arguments.networks:
        bars += compare(network, arguments.seeds, arguments.epochs)
    print(f"{time_million():.2f} s for a million weights")
    finish(bars)


if __name__ == "__main__":
    main()
