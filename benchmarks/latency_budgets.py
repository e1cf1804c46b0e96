"""Ask for a speedup, and measure the shrunk network: `python benchmarks/latency_budgets.py`.

Measures a latency table of each network in ONNX Runtime on one thread. Then finds by bisection the
smallest uniform channel sparsity with half of the dense latency, as predicted from the table. The
network with these widths is measured whole, in turns with the dense network. If the prediction is
off by more than 5 %, the table is corrected, and the sparsity is found again, at most three times.

The weights are random and nothing is trained, since the latency depends on the shapes alone. Prints
a table as Markdown. Exits with 1 if a measured speedup is not within 1.95 to 2.3.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.architectures import ARCHITECTURES
from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.recording import silence_libraries, write_markdown_header, write_markdown_row
from lightning_prune import ChannelPattern, LatencyBudget, Pattern
from lightning_prune.channels.narrowing import Narrower
from lightning_prune.engine.channel_groups import ChannelGroup
from lightning_prune.engine.channel_selection import select_channels
from lightning_prune.engine.latency_costs import LARGEST_ERROR, LatencyCost, make_latency_cost
from lightning_prune.reporting.latency import Latency
from lightning_prune.reporting.latency_widths import measure_latency_table
from lightning_prune.reporting.stopwatch import Stopwatch

LEAST, MOST = 0.975, 1.15  # of the speedup that was asked for
CORRECTIONS = 3
NETWORKS = ("ResNet-18", "MobileNetV2", "ViT")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A network with the widths that a cost allows.

    Args:
        network: The name of the network, and the number of corrections before.
        asked: The speedup that was asked for.
        sparsity: The uniform sparsity of the channels.
        predicted: The predicted speedup.
        measured: The latency of the network beside the dense network.
    """

    network: str
    asked: float
    sparsity: float
    predicted: float
    measured: Latency

    def write_row(self) -> str:
        """Return a row of the table."""
        found = self.measured
        return write_markdown_row(
            self.network,
            f"{self.asked:.2f}",
            f"{self.sparsity:.3f}",
            f"{self.predicted:.2f}",
            f"{found.speedup:.2f} ({found.low:.2f}-{found.high:.2f})",
            f"{1000 * found.dense.median:.2f} → {1000 * found.pruned.median:.2f}",
        )


def keep_uniformly(groups: Sequence[ChannelGroup], sparsity: float) -> dict[str, int]:
    """Return the channels that each group keeps at a sparsity, by its name."""
    return {group.name: group.round_keep(round((1 - sparsity) * group.total)) for group in groups}


def find_sparsity(cost: LatencyCost, groups: Sequence[ChannelGroup], most: float) -> float:
    """Return the smallest uniform sparsity whose predicted latency is at most a number of ms."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(keep_uniformly(groups, middle)) > most else (low, middle)
    return high


def try_budget(
    name: str, model: nn.Module, example: torch.Tensor, budget: LatencyBudget, pattern: Pattern
) -> Iterator[Trial]:
    """Yield the trial of the first prediction, and a trial after each correction."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    selection = select_channels(model, [optimizer], {"*": 1.0}, pattern, example)
    table = measure_latency_table(
        model, example, selection, budget, announce=partial(print, f"{name}:", file=sys.stderr)
    )
    cost = make_latency_cost(table, model, selection, example)
    groups = selection.groups
    narrower = Narrower(model, example, {group.name: group.places for group in groups})
    measure = Stopwatch(model, example, budget)
    for corrections in range(CORRECTIONS + 1):
        sparsity = find_sparsity(cost, groups, budget.limit(cost.dense_ms))
        kept = keep_uniformly(groups, sparsity)
        trial = Trial(
            network=f"{name}, {corrections} corrections" if corrections else name,
            asked=budget.speedup,
            sparsity=sparsity,
            predicted=cost.dense_ms / cost(kept),
            measured=measure(narrower.narrow(kept)),
        )
        yield trial
        if abs(trial.predicted / trial.measured.speedup - 1) <= LARGEST_ERROR:
            return
        cost = cost.corrected(kept, cost.dense_ms / trial.measured.speedup)


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", choices=ARCHITECTURES, default=NETWORKS, metavar="NAME"
    )
    parser.add_argument("--speedup", type=float, default=2.0, help="the speedup to ask for")
    parser.add_argument("--scope", choices=("inner", "all"), default="inner")
    parser.add_argument("--scale", type=float, default=1.0, help="scales all widths")
    return parser.parse_args()


def main() -> None:
    """Try the budget on all networks, print, and judge the last trial of each."""
    arguments = read_arguments()
    silence_libraries()
    torch.set_num_threads(1)
    budget = LatencyBudget(speedup=arguments.speedup)
    columns = ("asked", "channels gone", "predicted", "measured", "ms")
    print(write_markdown_header("network", *columns))
    bars = []
    for name in arguments.networks:
        torch.manual_seed(0)
        build, inputs = ARCHITECTURES[name]
        example = inputs(1, torch.Generator().manual_seed(0))
        pattern = ChannelPattern(scope=arguments.scope)
        for trial in try_budget(name, build(arguments.scale).eval(), example, budget, pattern):
            print(trial.write_row(), flush=True)
        least, most = (budget.speedup * part for part in (LEAST, MOST))
        bars.append(Bar(name=name, value=trial.measured.speedup, least=least, most=most))
    finish(bars)


if __name__ == "__main__":
    main()
