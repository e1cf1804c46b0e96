"""Penalize channels that go: `python benchmarks/growing_penalty.py --root <folder>`.

The folder holds the four IDX files of Fashion-MNIST, as the Debian package
``dataset-fashion-mnist`` has them (``/usr/share/datasets/fashion-mnist``). A small convolutional
network with batch normalization is trained to 0.5 and to 0.25 of the multiply-adds, by SGD and by
AdamW. Channels are pruned by magnitude, along the default ramp, uniformly. The arms differ in the
penalty alone: none, or a `GrowingPenalty` of each strength. Every arm has the same images, epochs,
batches and optimizer. By default these are the first 4,000 training images. The learning rate
climbs and falls in one cycle.

The accuracy is that on the 10,000 test images after the last step. No model is selected. With
``--validate`` the accuracy is that on the last 5,000 training images, for the choice of a strength.

Prints the mean and the standard deviation over the seeds, in points, as a Markdown table. Judges
nothing: a difference within the deviation says nothing.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.data import Data, FullBatches, keep_first, read_standardized_mnist
from benchmarks.kit.judging import summarize
from benchmarks.kit.recording import (
    describe_machine,
    hide_output,
    list_points,
    silence_libraries,
    write_markdown_header,
    write_markdown_row,
)
from benchmarks.kit.training import Classifier, make_quiet_trainer, measure_accuracy
from lightning_prune import ChannelPattern, GrowingPenalty, MacsBudget, PruningCallback

BATCH, SIDE, VALIDATION = 64, 28, 5000
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
    "AdamW": partial(torch.optim.AdamW, lr=5e-3),
}


class OneCycle(Classifier):
    """A classifier whose learning rate climbs and falls in one cycle."""

    def configure_optimizers(self):
        """Return the optimizer and the cycle, which moves at each step."""
        optimizer = self.make_optimizer(self.parameters())
        steps, rate = int(self.trainer.estimated_stepping_batches), optimizer.defaults["lr"]
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def build() -> nn.Sequential:
    """Return five convolutions with batch normalization, and a linear layer on their mean."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 12, 2), (12, 24, 1), (24, 24, 2), (24, 48, 1), (48, 48, 1)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def train(
    data: Data, optimizer: str, keep: float, penalty: GrowingPenalty | None, seed: int, epochs: int
) -> float:
    """Return the accuracy of the pruned network after training, in points."""
    seed_everything(seed, verbose=False)
    model = OneCycle(build(), OPTIMIZERS[optimizer])
    model.example_input_array = torch.zeros(1, 1, SIDE, SIDE)
    pruning = PruningCallback(
        budget=MacsBudget(keep=keep), pattern=ChannelPattern(round_to=1), penalty=penalty
    )
    with hide_output():
        trainer = make_quiet_trainer(pruning, max_epochs=epochs)
        trainer.fit(model, FullBatches(data.train, BATCH, seed))
    return measure_accuracy(model.net, *data.test.tensors)


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the four files")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each training")
    parser.add_argument("--images", type=int, default=4000, help="number of training images")
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--optimizers", nargs="+", choices=[*OPTIMIZERS], default=[*OPTIMIZERS])
    parser.add_argument("--largest", nargs="+", type=float, default=[GrowingPenalty().largest])
    parser.add_argument("--ahead", nargs="+", type=float, default=[GrowingPenalty().ahead])
    parser.add_argument("--validate", action="store_true", help="judge training images instead")
    return parser.parse_args()


def main() -> None:
    """Train all arms, and print."""
    arguments = read_arguments()
    silence_libraries()
    torch.set_num_threads(1)
    whole = read_standardized_mnist(arguments.root)
    data = keep_first(whole, arguments.images)
    if arguments.validate:
        last = [tensor[-VALIDATION:] for tensor in whole.train.tensors]
        data = data._replace(test=torch.utils.data.TensorDataset(*last))
    penalties = [
        None,
        *(
            GrowingPenalty(largest=largest, ahead=ahead)
            for largest in arguments.largest
            for ahead in arguments.ahead
        ),
    ]
    print(describe_machine(), "", sep="\n")
    columns = ("MACs", "penalty", "accuracy of each seed", "mean ± sd")
    print(write_markdown_header("optimizer", *columns))
    for name in arguments.optimizers:
        for keep in arguments.keeps:
            for penalty in penalties:
                points = [
                    train(data, name, keep, penalty, seed, arguments.epochs)
                    for seed in range(arguments.seeds)
                ]
                row = (f"{keep:g}", str(penalty), list_points(points), summarize(points))
                print(write_markdown_row(name, *row), flush=True)


if __name__ == "__main__":
    main()
