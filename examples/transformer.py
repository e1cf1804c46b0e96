"""A transformer that loses heads and feed-forward units: `python -m examples.transformer`.

The transformer reads an image of a digit as a sentence of eight rows. While it learns, half of the
attention heads and of the feed-forward units are pruned; or, with ``--macs 0.5``, as many as half
of the multiply-adds ask for. Then they are removed, and the smaller network is exported to ONNX.
The answers, parameters and latency of both networks are compared.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from rich.console import Console
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from examples.digits import DigitsDataModule
from lightning_prune import (
    ChannelPattern,
    MacsBudget,
    PruningCallback,
    export_onnx,
    report,
    shrink,
)


class RowReader(LightningModule):
    """An encoder of the layers of torch. It has no code for pruning.

    Args:
        width: Size of the vector of each image row, which the heads share.
        heads: Number of heads in each layer.
        depth: Number of layers.
    """

    def __init__(self, width: int = 128, heads: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 1, 8, 8)  # shows which channels go together
        self.embed = nn.Linear(8, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 8, width))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return ten logits for each image ``(1, 8, 8)``."""
        rows = self.embed(images.squeeze(1)) + self.positions
        return self.head(self.norm(self.layers(rows)).mean(1))

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
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train and prune, shrink, export and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=int, default=128, help="a multiple of 8")
    parser.add_argument("--depth", type=int, default=3, help="number of layers")
    parser.add_argument("--macs", type=float, help="fraction of the multiply-adds that may remain")
    parser.add_argument("--output", type=Path, default=Path("transformer.onnx"))
    arguments = parser.parse_args()

    seed_everything(0)
    torch.set_num_threads(1)
    data, model = DigitsDataModule(), RowReader(arguments.width, depth=arguments.depth)
    pruning = PruningCallback(sparsity=0.5, pattern=ChannelPattern())
    if arguments.macs is not None:
        pruning = PruningCallback(budget=MacsBudget(keep=arguments.macs), pattern=ChannelPattern())
    trainer = Trainer(
        max_epochs=arguments.epochs,
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    shrunk = shrink(model)  # compares the answers before it returns
    for kind, network in (("pruned", model), ("shrunk", shrunk)):
        (result,) = trainer.test(network, data, verbose=False)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        print(f"{kind}: {parameters:,} parameters, test accuracy {result['test_acc']:.4f}")

    images = data.test.tensors[0]
    with torch.inference_mode():
        expected, found = model.eval()(images), shrunk.eval()(images)
    difference = float((expected - found).abs().max() / expected.abs().max())
    print(f"answers to the test images differ by at most {difference:.1e} of the largest")
    file = export_onnx(shrunk, arguments.output, inputs=[images])
    print(
        f"written: {file.path}, {file.size:,} bytes; "
        f"its answers differ by at most {file.difference:.1e}"
    )
    Console().print(report(shrunk, dense=model).table())


if __name__ == "__main__":
    main()
