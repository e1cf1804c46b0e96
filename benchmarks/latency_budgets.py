"""Ask well-known networks to be twice as fast: `python benchmarks/latency_budgets.py`.

Measures the latencies of narrower copies of each network in ONNX Runtime on one thread, prunes
channels to a `LatencyBudget` in a dozen steps, measures the smaller network whole, and lets the
measurement correct the prediction, as `PruningCallback` does. At the end the smaller network and
the dense network take turns once more. Random weights are enough: a latency does not depend on
them. Run it on an idle machine; it takes some minutes a network.

Prints a Markdown table, and exits with 1 if a speedup is not from 1.95 to 2.3.
"""

import argparse
import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.architectures import ARCHITECTURES, Inputs
from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.recording import (
    describe_machine,
    silence_libraries,
    write_markdown_header,
    write_markdown_row,
)
from lightning_prune import (
    ChannelPattern,
    Latency,
    LatencyBudget,
    OneShotSchedule,
    Pruner,
    measure_latency_table,
    report,
    shrink,
)

NETWORKS = ("ResNet-18", "MobileNetV2", "ViT")
LEAST, MOST = 1.95, 2.3
STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Landing:
    """A network that was asked to be faster.

    Args:
        name: The name of the network.
        predicted: The speedup by the corrected table.
        measured: The latencies at the end.
        corrections: Number of measurements that changed the table.
        parameters: The fraction of the parameters that is left.
    """

    name: str
    predicted: float
    measured: Latency
    corrections: int
    parameters: float

    def write_row(self) -> str:
        """Return a row of the table."""
        latency = self.measured
        return write_markdown_row(
            self.name,
            f"{self.predicted:.2f}",
            f"{latency.speedup:.2f} ({latency.low:.2f}-{latency.high:.2f})",
            str(self.corrections),
            f"{self.parameters:.2f}",
        )


def measure(dense: nn.Module, small: nn.Module, example: torch.Tensor, blocks: int) -> Latency:
    """Return the latencies in ONNX Runtime, in turns."""
    found = report(small, example, dense=dense, blocks=blocks, progress=False)
    return next(each for each in found.latencies if each.runtime == "ONNX Runtime")


def land(
    name: str, model: nn.Module, inputs: Inputs, budget: LatencyBudget, blocks: int
) -> Landing:
    """Prune a network to a latency, and measure it."""
    example = inputs(1, torch.Generator().manual_seed(0))
    dense = copy.deepcopy(model.eval())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(
        budget=budget,
        pattern=ChannelPattern(scope="all"),
        schedule=OneShotSchedule(end=1, unit="step"),
    )
    pruner.attach(
        model,
        optimizer,
        steps=STEPS,
        example=example,
        latencies=lambda selection: measure_latency_table(
            model, example, selection, budget, announce=print
        ),
    )
    corrections, checked = 0, None
    for _ in range(STEPS):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pruner.before_step(optimizer)
        optimizer.step()
        kept = [group.kept for group in pruner.groups]
        if pruner.updates and kept != checked:
            checked = kept
            latency = measure(dense, shrink(model, example), example, blocks)
            (expense,) = pruner.spending
            dense_ms = expense.limit.dense
            predicted = dense_ms / expense.cost
            if latency.contradicts(predicted, budget.speedup, expense.largest_error):
                corrections += 1
                pruner.correct_cost("latency", dense_ms / latency.speedup)
    pruner.detach()
    small = shrink(model, example)
    (expense,) = pruner.spending
    counts = [sum(each.numel() for each in net.parameters()) for net in (small, dense)]
    return Landing(
        name=name,
        predicted=expense.limit.dense / expense.cost,
        measured=measure(dense, small, example, blocks),
        corrections=corrections,
        parameters=counts[0] / counts[1],
    )


def main() -> None:
    """Measure all networks, and judge them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help="networks"
    )
    parser.add_argument("--speedup", type=float, default=2.0, help="the speedup to ask for")
    parser.add_argument("--blocks", type=int, default=201, help="pairs of blocks of calls")
    parser.add_argument("--scale", type=float, default=1.0, help="width of the networks")
    arguments = parser.parse_args()
    silence_libraries()
    budget, bars = LatencyBudget(speedup=arguments.speedup), []
    columns = ("network", "predicted", "measured", "corrections", "parameters left")
    print(describe_machine(), "", write_markdown_header(*columns), sep="\n")
    for name in arguments.networks:
        torch.manual_seed(0)
        build, inputs = ARCHITECTURES[name]
        landing = land(name, build(arguments.scale), inputs, budget, arguments.blocks)
        print(landing.write_row(), flush=True)
        speedup = landing.measured.speedup * 2.0 / arguments.speedup
        bars.append(Bar(name=f"{name}, speedup", value=speedup, least=LEAST, most=MOST))
    finish(bars)


if __name__ == "__main__":
    main()
