"""Prune well-known networks to budgets, and count again: `python benchmarks/budgets.py`.

Each network of `benchmarks/architectures.py` that is listed below is pruned in three updates, to
half of the multiply-adds, to 0.3 of the parameters and to a file of a megabyte: by single weights
with the ERK allocation and with a global ranking (the sparse file), and by channels with the
uniform allocation, ``scope="all"`` (the ONNX file). No weight is trained, so this benchmark says
nothing of the accuracy. For that, run `benchmarks/budget_accuracy.py`.

The number of the engine must be that of every other counter, for the network that is there: with
zeros in place, or with channels removed. The counters of multiply-adds are:

- `report` of this package, which counts only multiplications by a weight that is not zero;
- ``torch.utils.flop_counter``, whose operations are halved. It counts the products of attention
  only in the mathematical form of attention, so this form is run;
- Torch-Pruning (``pip install torch-pruning``), without the additions of biases, the normalizations
  and the activations, which only that package counts. It leaves out the products of attention, so
  those of torch are added. Where it is missing, this counter is left out.

Neither torch nor Torch-Pruning sees zeros: with zeros in place, the number of each layer is taken
times the fraction of the nonzero weights. All parameters get random values other than zero first.

Then the next atom in the order of the allocation is added, without the solver of the engine: a
weight, or a step of 8 channels. The cost of that network is counted by `report`, or on disk. The
bytes of an ONNX file are predicted, so they may be off by 2 %; all other costs are exact.

Some networks have more than a megabyte in parts that stay dense. Their row says the least number of
bytes that channels can reach.

Prints a Markdown table. Exits with 1 in three cases:

- A cost is above the budget.
- The next atom would fit as well.
- A counter finds another cost.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.architectures import ARCHITECTURES
from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.recording import (
    describe_machine,
    silence_libraries,
    write_markdown_header,
    write_markdown_row,
)
from benchmarks.parts.budgets.counters import (
    Counts,
    count_bytes,
    count_macs,
    count_parameters,
    import_torch_pruning,
)
from benchmarks.parts.budgets.pruning import (
    FORMS,
    STEPS,
    Form,
    add_next_atom,
    build_as_trained,
    prune,
)
from lightning_prune import Budget, BytesBudget, MacsBudget, ParameterBudget, shrink

NETWORKS = ("ResNet-18", "MobileNetV2", "EfficientNet-B0", "ViT", "BERT")
BUDGETS: tuple[Budget, ...] = (MacsBudget(keep=0.5), ParameterBudget(keep=0.3))
COUNTERS: Mapping[str, Callable[[nn.Module, Tensor, Budget], Counts]] = {
    "macs": count_macs,
    "parameters": count_parameters,
    "bytes": count_bytes,
}
SLACK = 0.02  # of the predicted bytes of an ONNX file; all other costs are exact


@dataclass(frozen=True, kw_only=True)
class Landing:
    """A network that was pruned under a budget.

    Args:
        network: The name of the network.
        form: The name of the pattern and the allocation.
        budget: The budget.
        dense: The cost of the dense network.
        limit: The largest cost that the budget allows.
        cost: The cost after pruning, by the engine.
        following: The cost with the next atom, by `report` or on disk.
        found: The cost after pruning, by each other counter.
    """

    network: str
    form: str
    budget: Budget
    dense: float
    limit: float
    cost: float
    following: float
    found: Counts

    @property
    def name(self) -> str:
        """The name of the row."""
        return f"{self.network}, {self.form}, {self.budget.describe()}"

    def write_row(self) -> str:
        """Return a row of the table."""
        counts = ", ".join(
            name if count == self.cost else f"{name}: {count:,}"
            for name, count in self.found.items()
        )
        return write_markdown_row(
            self.network,
            self.form,
            f"`{self.budget.describe()}`",
            f"{self.dense:,.0f}",
            f"{self.limit:,.1f}",
            f"{self.cost:,.0f}",
            f"{self.cost / self.dense:.5f}",
            f"{self.following:,.0f}",
            counts,
        )

    def set_bars(self) -> Iterator[Bar]:
        """Yield the bars of the row."""
        slack = SLACK * self.cost if _is_predicted(self.budget) else 0.0
        yield Bar(name=f"{self.name}, cost", value=self.cost, most=self.limit)
        is_over = self.following + slack > self.limit
        yield Bar(name=f"{self.name}, next atom above the budget", value=float(is_over), least=1)
        for counter, count in self.found.items():
            least, most = self.cost - slack, min(self.cost + slack, self.limit)
            yield Bar(name=f"{self.name}, {counter}", value=count, least=least, most=most)


def land(network: str, name: str, form: Form, budget: Budget, scale: float) -> Landing:
    """Prune a network under a budget, and count."""
    build, draw = ARCHITECTURES[network]
    dense = build_as_trained(build, scale)
    example = draw(1, torch.Generator().manual_seed(0))
    pruned, pruner = prune(dense, example, form, steps=STEPS, budget=budget)
    (expense,) = pruner.spending
    count = COUNTERS[budget.unit]
    with_next = add_next_atom(dense, example, form, pruner)
    return Landing(
        network=network,
        form=name,
        budget=budget,
        dense=expense.limit.dense,
        limit=expense.limit.final,
        cost=expense.cost,
        following=next(iter(count(with_next, example, budget).values())),
        found=count(shrink(pruned, example) if form.removes else pruned, example, budget),
    )


def judge(network: str, name: str, budget: Budget, scale: float) -> list[Bar]:
    """Print the row of a network under a budget, and return the bars of the row."""
    try:
        landing = land(network, name, FORMS[name], budget, scale)
    except ValueError as error:
        if not isinstance(budget, BytesBudget) or "that can be reached" not in str(error):
            raise
        least = str(error).split(": ")[1].split(" of the dense")[0]
        cells = (network, name, f"`{budget.describe()}`", *[""] * 5)
        print(write_markdown_row(*cells, f"not reachable: {least}"), flush=True)
        return []
    print(landing.write_row(), flush=True)
    return [*landing.set_bars()]


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help="networks"
    )
    parser.add_argument(
        "--forms", nargs="+", choices=[*FORMS], default=[*FORMS], metavar="FORM", help="patterns"
    )
    parser.add_argument("--bytes", type=int, default=1_000_000, help="bytes of the file")
    parser.add_argument("--scale", type=float, default=1.0, help="scales all widths")
    return parser.parse_args()


def main() -> None:
    """Prune all networks, print, and judge."""
    arguments = read_arguments()
    silence_libraries()
    torch.set_num_threads(1)
    if import_torch_pruning() is None:
        print("Torch-Pruning is not installed, so this counter is left out", file=sys.stderr)
    columns = ("dense", "at most", "cost", "of dense", "with the next atom", "counters that agree")
    print(describe_machine("torch-pruning"), "", sep="\n")
    print(write_markdown_header("network", "pruned", "budget", *columns))
    bars: list[Bar] = []
    for network in arguments.networks:
        for name in arguments.forms:
            file = "onnx" if FORMS[name].removes else "sparse"
            for budget in (*BUDGETS, BytesBudget(at_most=arguments.bytes, file=file)):
                bars += judge(network, name, budget, arguments.scale)
    print()
    finish(bars)


def _is_predicted(budget: Budget) -> bool:
    """Whether a budget limits the bytes of an ONNX file, which the engine does not know exactly."""
    return isinstance(budget, BytesBudget) and budget.file == "onnx"


if __name__ == "__main__":
    main()
