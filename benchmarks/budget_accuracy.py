"""Compare a budget with uniform pruning: `python benchmarks/budget_accuracy.py --root <folder>`.

The folder holds the four IDX files of Fashion-MNIST, as the Debian package
``dataset-fashion-mnist`` has them (``/usr/share/datasets/fashion-mnist``). A small convolutional
network is trained to 0.5 and to 0.25 of the multiply-adds, in two ways:

- by a budget: ``MacsBudget`` with ``GlobalAllocation(per="macs")``;
- by hand: the uniform sparsity, found by bisection, with the most multiply-adds within the same
  budget.

Both prune single weights by magnitude, and then channels by `FisherCriterion` (``round_to=1``, so
that both come near to the budget). Every arm has the same training: the same images, epochs,
batches, optimizer, schedule and criterion. By default these are the first 5,000 training images.
The accuracy is that on the 10,000 test images after the last step. No model is selected.

Prints the mean and the standard deviation over the seeds, in points, as a Markdown table. Exits
with 1 in two cases, for weights and for channels:

- The mean of the budget is more than 0.2 points below the mean by hand.
- The mean of the budget is nowhere above the mean by hand.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import seed_everything

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.data import Data, FullBatches, keep_first, read_standardized_mnist
from benchmarks.kit.judging import Bar, finish_with_all, summarize
from benchmarks.kit.networks.small import build_convolutions
from benchmarks.kit.recording import (
    describe_machine,
    hide_output,
    list_points,
    silence_libraries,
    write_markdown_header,
    write_markdown_row,
)
from benchmarks.kit.training import Classifier, make_quiet_trainer, measure_accuracy
from lightning_prune import (
    ChannelPattern,
    Criterion,
    FisherCriterion,
    GlobalAllocation,
    MacsBudget,
    MagnitudeCriterion,
    OneShotSchedule,
    Pattern,
    PolynomialSchedule,
    Pruner,
    PruningCallback,
    UniformAllocation,
    UnstructuredPattern,
    report,
    shrink,
)

KEEPS = (0.5, 0.25)
PATTERNS: Mapping[str, tuple[Pattern, Criterion]] = {
    "weights": (UnstructuredPattern(), MagnitudeCriterion()),
    "channels": (ChannelPattern(round_to=1), FisherCriterion()),
}
BY_BUDGET, BY_HAND = "budget", "uniform, by hand"
BATCH, SIDE = 128, 28
HALVINGS = 14  # of the interval that holds the uniform sparsity
ALLOWED_POINTS = 0.2  # more is worse than by hand


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to prune, with the results of all seeds.

    Args:
        pattern: The name of the pattern.
        keep: The fraction of the multiply-adds that may remain.
        way: By the budget, or by hand.
        sparsity: The fraction of the weights or channels that is pruned.
        macs: The fraction of the multiply-adds that is there after training.
        accuracies: The test accuracy of each seed, in points.
    """

    pattern: str
    keep: float
    way: str
    sparsity: float
    macs: float
    accuracies: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return summarize(self.accuracies).mean

    def write_row(self) -> str:
        """Return a row of the table."""
        return write_markdown_row(
            self.pattern,
            f"{self.keep:g}",
            self.way,
            f"{self.sparsity:.4f}",
            f"{self.macs:.4f}",
            list_points(self.accuracies),
            summarize(self.accuracies),
        )


def build() -> torch.nn.Module:
    """Return the network that is trained."""
    return build_convolutions(SIDE)


def count_macs(net: torch.nn.Module, pattern: Pattern) -> int:
    """Return the multiply-adds of a pruned network, after removal for channels."""
    image = torch.zeros(1, 1, SIDE, SIDE)
    smaller = shrink(net.eval(), image) if pattern.couples_tensors else net.eval()
    return report(smaller, image, latency=False).total.effective_macs


def find_uniform_sparsity(pattern: Pattern, keep: float) -> float:
    """Return the least uniform sparsity with at most a fraction of the multiply-adds."""
    torch.manual_seed(0)
    net, image = build(), torch.zeros(1, 1, SIDE, SIDE)
    most = keep * count_macs(net, UnstructuredPattern())
    start = {name: value.clone() for name, value in net.state_dict().items()}

    def fits(sparsity: float) -> bool:
        net.load_state_dict(start)
        pruner = Pruner(
            sparsity=sparsity,
            pattern=pattern,
            allocation=UniformAllocation(),
            schedule=OneShotSchedule(end=0),
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        pruner.attach(net, optimizer, steps=1, example=image)
        net.train()(torch.zeros(2, 1, SIDE, SIDE)).sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        pruner.detach()
        return count_macs(net, pattern) <= most

    low, high = 0.0, 1 - keep / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def train(
    data: Data, seed: int, epochs: int, **recipe: object
) -> tuple[Classifier, PruningCallback]:
    """Return the network after training, with the zeros in place."""
    seed_everything(seed, verbose=False)
    model = Classifier(build(), partial(torch.optim.AdamW, lr=2e-3))
    model.example_input_array = torch.zeros(1, 1, SIDE, SIDE)
    pruning = PruningCallback(schedule=PolynomialSchedule(begin=0.1, end=0.6), **recipe)
    with hide_output():
        trainer = make_quiet_trainer(pruning, max_epochs=epochs)
        trainer.fit(model, FullBatches(data.train, BATCH, seed))
    return model.eval(), pruning


def compare(data: Data, name: str, keep: float, arguments: argparse.Namespace) -> Iterator[Arm]:
    """Yield both ways to prune to the same multiply-adds."""
    (pattern, criterion), dense = PATTERNS[name], count_macs(build(), UnstructuredPattern())
    uniform = find_uniform_sparsity(pattern, keep)
    ways = {
        BY_BUDGET: {"budget": MacsBudget(keep=keep), "allocation": GlobalAllocation(per="macs")},
        BY_HAND: {"sparsity": uniform, "allocation": UniformAllocation()},
    }
    for way, recipe in ways.items():
        accuracies = []
        for seed in range(arguments.seeds):
            model, pruning = train(
                data, seed, arguments.epochs, pattern=pattern, criterion=criterion, **recipe
            )
            accuracies.append(measure_accuracy(model.net, *data.test.tensors))
        macs = count_macs(model.net, pattern) / dense
        yield Arm(
            pattern=name,
            keep=keep,
            way=way,
            sparsity=pruning.sparsity,
            macs=macs,
            accuracies=accuracies,
        )


def set_bars(arms: Sequence[Arm]) -> Iterator[Bar]:
    """Yield the bars: within the budget, nowhere worse than by hand, and better somewhere."""
    for arm in arms:
        name = f"{arm.pattern} at {arm.keep:g}, {arm.way}, multiply-adds"
        yield Bar(name=name, value=arm.macs, most=arm.keep)
    for pattern in dict.fromkeys(arm.pattern for arm in arms):
        means = {(arm.keep, arm.way): arm.mean for arm in arms if arm.pattern == pattern}
        keeps = dict.fromkeys(keep for keep, _ in means)
        gains = {keep: means[keep, BY_BUDGET] - means[keep, BY_HAND] for keep in keeps}
        for keep, gain in gains.items():
            yield Bar(
                name=f"{pattern} at {keep:g}, points gained", value=gain, least=-ALLOWED_POINTS
            )
        yield Bar(name=f"{pattern}, most points gained", value=max(gains.values()), least=0.0)


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the four files")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each training")
    parser.add_argument("--images", type=int, default=5000, help="number of training images")
    parser.add_argument(
        "--patterns", nargs="+", choices=[*PATTERNS], default=[*PATTERNS], metavar="NAME"
    )
    parser.add_argument("--keeps", nargs="+", type=float, default=KEEPS, help="fractions of MACs")
    return parser.parse_args()


def main() -> None:
    """Train all arms, print, and judge."""
    arguments = read_arguments()
    silence_libraries()
    torch.set_num_threads(1)
    data = keep_first(read_standardized_mnist(arguments.root), arguments.images)
    columns = ("sparsity", "MACs of dense", "test accuracy of each seed", "mean ± sd")
    print(describe_machine(), "", sep="\n")
    print(write_markdown_header("pruned", "MACs asked", "how", *columns))
    arms: list[Arm] = []
    for name in arguments.patterns:
        for keep in arguments.keeps:
            for arm in compare(data, name, keep, arguments):
                print(arm.write_row(), flush=True)
                arms.append(arm)
    print()
    finish_with_all([*set_bars(arms)])


if __name__ == "__main__":
    main()
