"""Measure the cost of pruning in one shot: `python benchmarks/one_shot_cost.py`.

`prune_once` with `WandaCriterion` takes turns with a plain loop: hooks that sum squares of inputs,
a forward pass of each batch without gradients, one sort of each row (or of each 4 inputs), and
zeros in place. The model has 100 million weights in 24 matrices. On a CPU everything runs on a
single thread, and the seconds are those in which the process ran. The fastest turn counts, because
a busy machine can only add time. Validations are left out. Memory is the peak with the model: of
the process on a CPU, of the allocator on CUDA.

`prune_once` may take 1.5 times the time and 1.5 times the memory of the plain loop. The zeros must
be at the same places, but for ties. Exits with 1 if a bar is missed.
"""

import argparse
import contextlib
import gc
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.memory import MIB, count_process_bytes, reset_process_peak
from benchmarks.kit.recording import (
    describe_machine,
    silence_libraries,
    write_markdown_header,
    write_markdown_row,
)
from lightning_prune import (
    NMPattern,
    Pattern,
    PruningCallback,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
    prune_once,
)

LAYERS, BATCHES, BATCH = 24, 16, 32
PATTERNS: dict[str, Pattern] = {
    "half of each row": UnstructuredPattern(per_row=True),
    "2:4": NMPattern(),
}
HEADER = ("", "", "plain loop", "prune_once", "over plain")
MOST = 1.5
LEAST_SAME = 0.9999  # of the zeros: equal scores may be cut at another place


class Cost(NamedTuple):
    """Seconds, bytes at the peak, and where the zeros are."""

    seconds: float
    peak: int
    zeros: list[Tensor]


class Network(LightningModule):
    """Square matrices with nonlinear functions between them; no input is always 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [each for _ in range(LAYERS) for each in (nn.Linear(width, width), nn.LeakyReLU())]
        self.net, self.width = nn.Sequential(*layers), width

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """Return a loss."""
        return self.net(batch).square().mean()

    def validation_step(self, batch: Tensor, index: int) -> None:
        """Do nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer, which is never stepped."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return the same random batches at each call."""
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(BATCHES, BATCH, self.width, generator=generator)
        return DataLoader(list(inputs), batch_size=None)

    val_dataloader = train_dataloader


def prune_plainly(model: Network, pattern: Pattern) -> None:
    """Prune by Wanda in a loop of a few lines, without this package."""
    sums: dict[nn.Linear, Tensor] = {}

    def add(layer: nn.Linear, inputs: tuple[Tensor]) -> None:
        sums[layer] += inputs[0].square().sum(0)

    layers = [layer for layer in model.net if isinstance(layer, nn.Linear)]
    for layer in layers:
        sums[layer] = torch.zeros(layer.in_features, device=model.device)
    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    with torch.no_grad():
        for index, batch in enumerate(model.train_dataloader()):
            model.training_step(batch.to(model.device), index)
        for hook in hooks:
            hook.remove()
        for layer, squares in sums.items():
            scores = layer.weight.abs() * squares.sqrt()
            rows = scores.view(-1, 4) if isinstance(pattern, NMPattern) else scores
            order = rows.sort(dim=1, stable=True).indices[:, : rows.shape[1] // 2]
            pruned = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True)
            layer.weight[pruned.view(scores.shape)] = 0


def prune_with_package(model: Network, pattern: Pattern) -> None:
    """Prune by `prune_once`, without validations."""
    callback = PruningCallback(
        sparsity=0.5,
        criterion=WandaCriterion(),
        pattern=pattern,
        allocation=UniformAllocation(),
    )
    trainer = Trainer(
        accelerator=model.device.type,
        devices=1,
        callbacks=[callback],
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        prune_once(trainer, model, batches=BATCHES)


def measure(
    prune: Callable[[Network, Pattern], None],
    width: int,
    pattern: Pattern,
    device: torch.device,
    without: int,
) -> Cost:
    """Return the cost of pruning a new model.

    Args:
        prune: Prunes the model.
        width: Rows and columns of the matrices.
        pattern: The pattern.
        device: The device of the model.
        without: Bytes of the process without a model.
    """
    is_cuda = device.type == "cuda"
    gc.collect()
    before = torch.cuda.memory_allocated() if is_cuda else without
    torch.manual_seed(0)
    with device:
        model = Network(width).eval()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_process_peak(64 * MIB)
    clock = time.perf_counter if is_cuda else time.process_time
    start = clock()
    prune(model, pattern)
    if is_cuda:
        torch.cuda.synchronize()
    seconds = clock() - start
    peak = torch.cuda.max_memory_allocated() if is_cuda else count_process_bytes("VmHWM")
    weights = [p.detach() for name, p in model.named_parameters() if name.endswith("weight")]
    return Cost(seconds, peak - before, [(weight == 0).cpu() for weight in weights])


def compare(name: str, width: int, device: torch.device, turns: int, without: int) -> list[Bar]:
    """Print both costs under a pattern, and return the bars."""
    plain, ours = [], []
    for _ in range(turns):
        plain.append(measure(prune_plainly, width, PATTERNS[name], device, without))
        ours.append(measure(prune_with_package, width, PATTERNS[name], device, without))
    ratios = {}
    for what, unit in (("seconds", 1), ("peak", MIB)):
        least = [min(getattr(cost, what) for cost in costs) / unit for costs in (plain, ours)]
        ratios[what] = least[1] / least[0]
        print(
            write_markdown_row(
                name, what, *(f"{each:.1f}" for each in least), f"{ratios[what]:.2f}"
            )
        )
    pairs = zip(plain[0].zeros, ours[0].zeros, strict=True)
    same = torch.stack([(one == other).float().mean() for one, other in pairs]).mean()
    return [
        Bar(name=f"{name}, seconds over plain", value=ratios["seconds"], most=MOST),
        Bar(name=f"{name}, peak over plain", value=ratios["peak"], most=MOST),
        Bar(name=f"{name}, share of the same zeros", value=float(same), least=LEAST_SAME),
    ]


def find_width(millions: float) -> int:
    """Return the rows of the matrices of a model with that many million weights."""
    return 4 * round((1e6 * millions / LAYERS) ** 0.5 / 4)


def warm_up(device: torch.device) -> int:
    """Import all that is imported late, so that it counts for neither; return the bytes then."""
    for prune in (prune_plainly, prune_with_package):
        for pattern in PATTERNS.values():
            prune(Network(64).to(device).eval(), pattern)
    return count_process_bytes("VmRSS")


def main() -> None:
    """Measure both patterns, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=100.0, help="weights of the model")
    parser.add_argument("--turns", type=int, default=3, help="number of turns")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the model"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    silence_libraries()
    width = find_width(arguments.millions)
    print(describe_machine())
    print(write_markdown_header(*HEADER))
    device = torch.device(arguments.device)
    without = warm_up(device)
    bars = [
        bar for name in PATTERNS for bar in compare(name, width, device, arguments.turns, without)
    ]
    print()
    finish(bars)


if __name__ == "__main__":
    main()
