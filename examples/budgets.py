"""What you can afford: `python -m examples.budgets --network resnet --macs 0.5`.

A small residual network, or the transformer of `examples/transformer.py`, learns to read digits and
is pruned to what you ask for: a part of the multiply-adds or of the parameters, a number of bytes
of the ONNX file, or a speedup in ONNX Runtime. Whole channels are pruned and then removed. The
costs of the smaller network are counted, and compared with the budget.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from examples.digits import DigitsDataModule
from examples.transformer import RowReader
from lightning_prune import (
    Budget,
    BytesBudget,
    ChannelPattern,
    LatencyBudget,
    MacsBudget,
    ParameterBudget,
    PruningCallback,
    export_onnx,
    report,
    shrink,
)


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity, or beside a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum after a ReLU."""
        return torch.relu(self.branch(images) + self.shortcut(images))


class DigitReader(LightningModule):
    """A ResNet of three stages. It has no code for pruning.

    Args:
        width: Number of channels of the first stage; each stage has twice as many as the last.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 1, 8, 8)  # shows which channels go together
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, 10),
        )
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return ten logits for each image ``(1, 8, 8)``."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("test_acc", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("resnet", "transformer"), default="resnet")
    wishes = parser.add_mutually_exclusive_group(required=True)
    wishes.add_argument("--macs", type=float, help="fraction of the multiply-adds that may remain")
    wishes.add_argument("--parameters", type=float, help="fraction of the parameters")
    wishes.add_argument("--bytes", type=int, help="the most bytes of the ONNX file")
    wishes.add_argument("--speedup", type=float, help="in ONNX Runtime, for 64 images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=32, help="of the residual network")
    parser.add_argument("--output", type=Path, default=Path("small.onnx"))
    return parser.parse_args()


def choose_budget(arguments: argparse.Namespace) -> Budget:
    """Return the budget that was asked for."""
    if arguments.macs is not None:
        return MacsBudget(keep=arguments.macs)
    if arguments.parameters is not None:
        return ParameterBudget(keep=arguments.parameters)
    if arguments.bytes is not None:
        return BytesBudget(at_most=arguments.bytes, file="onnx")
    return LatencyBudget(speedup=arguments.speedup, batch_size=64)


def main() -> None:
    """Train to the budget, remove the channels, export and count."""
    arguments = read_arguments()
    seed_everything(0)
    torch.set_num_threads(1)
    data = DigitsDataModule()
    is_resnet = arguments.network == "resnet"
    model: LightningModule = DigitReader(arguments.width) if is_resnet else RowReader()
    pruning = PruningCallback(
        budget=choose_budget(arguments), pattern=ChannelPattern(scope="all", round_to=4)
    )
    trainer = Trainer(
        max_epochs=arguments.epochs,
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    smaller = shrink(model)
    (result,) = trainer.test(smaller, data, verbose=False)
    total = report(smaller, latency=False).total
    file = export_onnx(smaller, arguments.output)
    print(
        f"{arguments.network}: {total.effective_macs:,} multiply-adds, {total.parameters:,} "
        f"parameters, {file.size:,} bytes, test accuracy {result['test_acc']:.4f}"
    )


if __name__ == "__main__":
    main()
