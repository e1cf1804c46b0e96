"""Remove half of the channels of many networks: `python benchmarks/channels.py`.

Prunes half of the channels of each network gradually, in two dozen steps, while it learns random
labels of random inputs. Then removes the channels. Compares the answers, the parameters, the bytes
of the ONNX files, and the latency in ONNX Runtime: a single input, a single thread, both files in
turns. It shows the worth of the removal, and that the removal changes no answer. To measure the
accuracy that pruning costs, run `benchmarks/digits_channels.py`.

Prints a table, and the parameters that stayed dense with the reasons, as Markdown. Leaves out
YOLO26n where Ultralytics is missing. Exits with 1 in three cases:

- The answers of a network differ by more than 1e-5 of the largest answer.
- ResNet-18 has less than 3 times fewer parameters.
- ResNet-18 is less than 2.5 times as fast.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.architectures import ARCHITECTURES, Inputs
from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.networks.small import CLASSES
from benchmarks.kit.onnx_files import time_files
from benchmarks.kit.recording import silence_libraries, write_markdown_header, write_markdown_row
from benchmarks.kit.turns import PairedTimes
from lightning_prune import ChannelPattern, Pruner, export_onnx, shrink

LARGEST_DIFFERENCE = 1e-5
FRESH_BATCHES = 4
BATCH = 4
JUDGED, LEAST_FEWER, LEAST_FASTER = "ResNet-18", 3.0, 2.5
YOLO = "YOLO26n"


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A network before and after the removal of channels.

    Args:
        name: The name of the network.
        sparsity: The fraction of the prunable channels that was pruned.
        difference: The largest difference of two answers, as a fraction of the largest answer.
        parameters: The number of parameters before and after.
        sizes: Bytes of the ONNX file before and after.
        latency: The times of the two files.
        dense: Names of the dense parameters, by reason.
    """

    name: str
    sparsity: float
    difference: float
    parameters: tuple[int, int]
    sizes: tuple[int, int]
    latency: PairedTimes
    dense: Mapping[str, list[str]]

    @property
    def fewer(self) -> float:
        """The parameters before over the parameters after."""
        return self.parameters[0] / self.parameters[1]

    def write_row(self) -> str:
        """Return a row of the table."""
        parameters = " → ".join(f"{number:,}" for number in self.parameters)
        latency = self.latency
        return write_markdown_row(
            self.name,
            f"{self.sparsity:.2f}",
            f"{self.difference:.0e}",
            f"{parameters} ({self.fewer:.1f} x)",
            " → ".join(f"{size / 1000:,.0f}" for size in self.sizes),
            " → ".join(f"{1000 * seconds:.2f}" for seconds in (latency.first, latency.second)),
            f"{latency.speedup:.2f} x ({latency.low:.2f}-{latency.high:.2f})",
        )

    def write_reasons(self) -> str:
        """Return a list of the dense parameters, with the reasons."""
        lines = [f"- {self.name}:"]
        for reason, names in self.dense.items():
            listed = ", ".join(f"`{name}`" for name in names[:2])
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            lines.append(f"    - {reason}: {listed}{more}")
        return "\n".join(lines)

    def set_bars(self, scale: float) -> Iterator[Bar]:
        """Yield the bars; those of size and speed hold at full width only."""
        yield Bar(
            name=f"{self.name}, difference of answers",
            value=self.difference,
            most=LARGEST_DIFFERENCE,
        )
        if self.name == JUDGED and scale == 1.0:
            yield Bar(
                name=f"{self.name}, times fewer parameters", value=self.fewer, least=LEAST_FEWER
            )
            yield Bar(
                name=f"{self.name}, times as fast",
                value=self.latency.speedup,
                least=LEAST_FASTER,
            )


def prune(model: nn.Module, inputs: Inputs, steps: int) -> Pruner:
    """Train for a few steps, in which half of the channels become zero."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = Pruner(sparsity=0.5, pattern=ChannelPattern(round_to=8, scope="all"))
    pruner.attach(model, optimizer, steps=steps, example=inputs(1, generator))
    model.train()
    for _ in range(steps):
        answers = _find_floats(model(inputs(BATCH, generator)))
        optimizer.zero_grad()
        sum(_compute_loss(answer, generator) for answer in answers).backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    return pruner


@torch.no_grad()
def compare_answers(pruned: nn.Module, shrunk: nn.Module, inputs: Inputs) -> float:
    """Return the largest difference of answers to fresh inputs, over the largest answer."""
    generator = torch.Generator().manual_seed(1)
    differences = []
    for _ in range(FRESH_BATCHES):
        batch = inputs(BATCH, generator)
        answers = (_find_floats(module(batch)) for module in (pruned, shrunk))
        for expected, found in zip(*answers, strict=True):
            gap = (expected - found).abs().max()
            differences.append(gap / expected.abs().max() if gap > 0 else gap)
    return float(torch.stack(differences).max())  # NaN wherever an answer is NaN


def measure(name: str, model: nn.Module, inputs: Inputs, steps: int, blocks: int) -> Removal:
    """Prune, shrink, export both networks, and compare."""
    pruner = prune(model, inputs, steps)
    example = inputs(1, torch.Generator().manual_seed(2))
    both = (model.eval(), shrink(model, example).eval())
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{kind}.onnx" for kind in ("pruned", "shrunk")]
        for module, file in zip(both, files, strict=True):
            export_onnx(module, file, example=example)
        sizes = tuple(file.stat().st_size for file in files)
        latency = time_files(*files, example, blocks)
    dense = defaultdict(list)
    for parameter, reason in pruner.dense.items():
        dense[reason].append(parameter)
    return Removal(
        name=name,
        sparsity=pruner.sparsity,
        difference=compare_answers(*both, inputs),
        parameters=tuple(sum(p.numel() for p in module.parameters()) for module in both),
        sizes=sizes,
        latency=latency,
        dense=dense,
    )


def build_yolo26n() -> nn.Module:
    """Return YOLO26n, the nano detector of Ultralytics, built from YAML."""
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel("yolo26n.yaml", nc=CLASSES, verbose=False)


def draw_yolo_images(count: int, generator: torch.Generator) -> Tensor:
    """Return random images, larger than those of the classifiers."""
    return torch.rand(count, 3, 128, 128, generator=generator)


def build_available(names: Iterable[str], scale: float) -> Iterator[tuple[str, nn.Module, Inputs]]:
    """Yield the networks; print a note on a network that cannot be built here."""
    for name in names:
        torch.manual_seed(0)
        if name == YOLO:
            try:
                yield name, build_yolo26n(), draw_yolo_images
            except (ImportError, RuntimeError) as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
        else:
            build, inputs = ARCHITECTURES[name]
            yield name, build(scale), inputs


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*ARCHITECTURES, YOLO]
    parser.add_argument(
        "--networks", nargs="+", choices=names, default=names, metavar="NAME", help="networks"
    )
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps")
    parser.add_argument("--blocks", type=int, default=51, help="pairs of blocks of calls to time")
    parser.add_argument("--scale", type=float, default=1.0, help="scales all widths")
    return parser.parse_args()


def main() -> None:
    """Measure all networks, print, and judge."""
    arguments = read_arguments()
    silence_libraries()
    torch.set_num_threads(1)
    columns = ("channels gone", "answers differ by", "parameters", "ONNX file, kB", "ms", "faster")
    print(write_markdown_header("network", *columns))
    removals = []
    for network in build_available(arguments.networks, arguments.scale):
        removals.append(measure(*network, arguments.steps, arguments.blocks))
        print(removals[-1].write_row(), flush=True)
    print("", *(removal.write_reasons() for removal in removals), "", sep="\n")
    finish(bar for removal in removals for bar in removal.set_bars(arguments.scale))


def _find_floats(answers: object) -> list[Tensor]:
    """Return the tensors of floats in the answers of a network."""
    leaves = torch.utils._pytree.tree_leaves(answers)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _compute_loss(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return the cross-entropy with random labels; other answers shall be near 0."""
    if logits.shape[1] != CLASSES:
        return logits.square().mean()
    labels = torch.randint(CLASSES, (len(logits), *logits.shape[2:]), generator=generator)
    return nn.functional.cross_entropy(logits, labels)


if __name__ == "__main__":
    main()
