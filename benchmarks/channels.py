"""Half of all channels gone, in many shapes of networks: `python benchmarks/channels.py`.

Prunes half of the channels of each network gradually while it learns random labels of random
inputs for two dozen steps, removes them, and compares: answers, parameters, bytes of the ONNX
files, and latency in ONNX Runtime of one input on one thread, in turns. It shows what removal is
worth and that it changes nothing. What pruning costs in accuracy is measured by
`benchmarks/digits_channels.py`.

Prints a table and what stayed dense with the reasons, as Markdown. Exits with 1 if the answers of a
network differ by more than 1e-5 of the largest, or if ResNet-18 has less than 3 times fewer
parameters or is less than 2.5 times as fast. YOLO26n is left out where Ultralytics is missing.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_prune import ChannelPattern, Pruner, export_onnx, shrink
from lightning_prune.deploy.onnx_runtime import open_session
from lightning_prune.reporting.latency import Contest, Latency, measured

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.architectures import ARCHITECTURES, CLASSES, Inputs

LARGEST_DIFFERENCE = 1e-5
FRESH_BATCHES = 4
BATCH = 4
LEAST_FEWER, LEAST_FASTER = 3.0, 2.5  # of ResNet-18
YOLO = "YOLO26n"
HEADER = (
    "| network | channels gone | answers differ by | parameters | ONNX file, kB | ms | faster |",
    "|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What became of one network, before and after its channels were removed.

    Args:
        name: Its name.
        sparsity: The share of the channels that can be pruned which was.
        difference: By how much answers differ, at most, as a fraction of the largest.
        parameters: How many there are.
        sizes: Bytes of the ONNX file.
        latency: Of the two files.
        dense: Names of what stayed dense, by reason.
    """

    name: str
    sparsity: float
    difference: float
    parameters: tuple[int, int]
    sizes: tuple[int, int]
    latency: Latency
    dense: Mapping[str, list[str]]

    @property
    def fewer(self) -> float:
        """How many times fewer parameters there are."""
        return self.parameters[0] / self.parameters[1]


def prune(model: nn.Module, inputs: Inputs, steps: int) -> Pruner:
    """Train a few steps, in which half of the channels become zero."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = Pruner(sparsity=0.5, pattern=ChannelPattern(round_to=8, scope="all"))
    pruner.attach(model, optimizer, steps=steps, example=inputs(1, generator))
    model.train()
    for _ in range(steps):
        answers = _tensors(model(inputs(BATCH, generator)))
        optimizer.zero_grad()
        sum(_loss(answer, generator) for answer in answers).backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    return pruner


@torch.no_grad()
def difference(pruned: nn.Module, shrunk: nn.Module, inputs: Inputs) -> float:
    """Return by how much answers to fresh inputs differ, as a fraction of the largest."""
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for _ in range(FRESH_BATCHES):
        batch = inputs(BATCH, generator)
        for expected, found in zip(*map(_tensors, (pruned(batch), shrunk(batch))), strict=True):
            worst = max(worst, float((expected - found).abs().max() / expected.abs().max()))
    return worst


def measure(name: str, model: nn.Module, inputs: Inputs, steps: int, blocks: int) -> Removal:
    """Prune, shrink, export both, and compare."""
    pruner = prune(model, inputs, steps)
    example = inputs(1, torch.Generator().manual_seed(2))
    both = (model.eval(), shrink(model, example).eval())
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{kind}.onnx" for kind in ("pruned", "shrunk")]
        for module, file in zip(both, files, strict=True):
            export_onnx(module, file, example=example)
        sizes = tuple(file.stat().st_size for file in files)
        calls = [_call(file, example) for file in files]
        contest = Contest(
            runtime="ONNX Runtime", device="cpu", threads=1, dense=calls[0], pruned=calls[1]
        )
        latency = measured(contest, blocks, lambda: None)
    dense = defaultdict(list)
    for parameter, reason in pruner.dense.items():
        dense[reason].append(parameter)
    parameters = tuple(sum(p.numel() for p in module.parameters()) for module in both)
    return Removal(
        name=name,
        sparsity=pruner.sparsity,
        difference=difference(*both, inputs),
        parameters=parameters,
        sizes=sizes,
        latency=latency,
        dense=dense,
    )


def yolo26n() -> nn.Module:
    """Return YOLO26n, the nano detector of Ultralytics, built from its YAML."""
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel("yolo26n.yaml", nc=CLASSES, verbose=False)


def yolo_images(count: int, generator: torch.Generator) -> Tensor:
    """Return random images, larger than those of the classifiers."""
    return torch.rand(count, 3, 128, 128, generator=generator)


def available(names: Iterable[str], scale: float) -> dict[str, tuple[nn.Module, Inputs]]:
    """Return the networks by name; say which cannot be built here."""
    found = {}
    for name in names:
        torch.manual_seed(0)
        if name == YOLO:
            try:
                found[name] = (yolo26n(), yolo_images)
            except (ImportError, RuntimeError) as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
        else:
            make, inputs = ARCHITECTURES[name]
            found[name] = (make(scale), inputs)
    return found


def row(its: Removal) -> str:
    """Return a row of the table."""
    parameters = " → ".join(f"{number:,}" for number in its.parameters)
    sizes = " → ".join(f"{size / 1000:,.0f}" for size in its.sizes)
    times = " → ".join(f"{1000 * t.median:.2f}" for t in (its.latency.dense, its.latency.pruned))
    return (
        f"| {its.name} | {its.sparsity:.2f} | {its.difference:.0e} "
        f"| {parameters} ({its.fewer:.1f} x) | {sizes} | {times} "
        f"| {its.latency.speedup:.2f} x ({its.latency.low:.2f}-{its.latency.high:.2f}) |"
    )


def kept(its: Removal) -> str:
    """Return what stayed dense and why, as a list."""
    lines = [f"- {its.name}:"]
    for reason, names in its.dense.items():
        listed = ", ".join(f"`{name}`" for name in names[:2])
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        lines.append(f"    - {reason}: {listed}{more}")
    return "\n".join(lines)


def main() -> None:
    """Measure all, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*ARCHITECTURES, YOLO]
    parser.add_argument("--networks", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps")
    parser.add_argument("--blocks", type=int, default=51, help="pairs of blocks of calls to time")
    parser.add_argument("--scale", type=float, default=1.0, help="of all widths, for a quick look")
    arguments = parser.parse_args()
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(*HEADER, sep="\n")
    removals = []
    for name, (model, inputs) in available(arguments.networks, arguments.scale).items():
        removals.append(measure(name, model, inputs, arguments.steps, arguments.blocks))
        print(row(removals[-1]), flush=True)
    print("", *map(kept, removals), "", sep="\n")
    missed = [
        f"{its.name}: its answers differ by {its.difference:.1e}"
        for its in removals
        if its.difference > LARGEST_DIFFERENCE
    ]
    for its in removals:
        if its.name == "ResNet-18" and arguments.scale == 1.0:
            if its.fewer < LEAST_FEWER:
                missed.append(f"{its.name}: only {its.fewer:.2f} times fewer parameters")
            if its.latency.speedup < LEAST_FASTER:
                missed.append(f"{its.name}: only {its.latency.speedup:.2f} times as fast")
    print("\n".join(missed) or "every bar is met")
    sys.exit(int(bool(missed)))


def _tensors(answers: object) -> list[Tensor]:
    """Return the tensors of floats in what a network answers."""
    leaves = torch.utils._pytree.tree_leaves(answers)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _loss(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return the cross-entropy with random labels; of other answers how far they are from 0."""
    if logits.shape[1] != CLASSES:
        return logits.square().mean()
    labels = torch.randint(CLASSES, (len(logits), *logits.shape[2:]), generator=generator)
    return nn.functional.cross_entropy(logits, labels)


def _call(file: Path, example: Tensor) -> Callable[[], object]:
    opened = open_session(file, threads=1)
    given = {opened.get_inputs()[0].name: example.numpy()}
    return lambda: opened.run(None, given)


if __name__ == "__main__":
    main()
