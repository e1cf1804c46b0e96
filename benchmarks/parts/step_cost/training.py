"""The module that `step_cost.py` trains, the batches, and a stopwatch."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from benchmarks.kit.networks.attention import Bert, draw_sentences
from benchmarks.kit.networks.convolutional import build_resnet18, draw_images
from benchmarks.kit.networks.small import CLASSES, build_lenet

FIRST_EPOCH = 2  # batches, after which the peers that prune between epochs have pruned
WARM_UP = 4  # steps
MONITOR_SHARE = 0.15  # of the time for all workloads

Batch = tuple[Tensor, Tensor]


class Batches:
    """A short first epoch, then an epoch without end."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.epochs = batches, 0

    def __iter__(self) -> Iterator[Batch]:
        self.epochs += 1  # counted with the first batch, since Lightning also makes idle iterators
        yield from self.batches[:FIRST_EPOCH] if self.epochs == 1 else itertools.cycle(self.batches)


class Stopwatch:
    """Adds up the CPU time of calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that makes the call and times it."""

        def timed_call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = call(*args, **kwargs)
            self.seconds[name] += time.process_time() - start
            return result

        return timed_call

    def time_hooks(self, callback: Callback) -> None:
        """Time all hooks that a callback has."""
        for name in dir(Callback):
            if name.startswith("on_") and getattr(type(callback), name) is not getattr(
                Callback, name
            ):
                setattr(callback, name, self.wrap(name, getattr(callback, name)))


class Training(LightningModule):
    """A classifier with fused AdamW; a peer may replace `make_optimizer`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.make_optimizer: Callable[[], torch.optim.Optimizer] = lambda: torch.optim.AdamW(
            self.parameters(), fused=True
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.make_optimizer()

    @property
    def layers(self) -> list[nn.Module]:
        """The layers with prunable weights."""
        return [m for m in self.network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    @property
    def zeros(self) -> float:
        """The fraction of zeros in the weights that the layers use."""
        weights = [layer.weight.detach() for layer in self.layers]
        return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A network with batches and a bar.

    Args:
        name: The name in the tables.
        build: Builds the network.
        draw: Draws the inputs of a batch.
        bar: The most that a step with the callback may cost, as a multiple of a step without it.
        renewed_bar: The same where the masks are chosen anew after each step.
        is_isolated: Whether the isolated ratio decides, and not the ratio of the fastest blocks.
        has_peers: Whether peers are measured, too.
        rounds: How often the trainings are built anew.
        share: Fraction of the time for all workloads.
    """

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], Tensor]
    bar: float
    renewed_bar: float
    is_isolated: bool
    has_peers: bool
    rounds: int
    share: float

    def draw_batches(self, number: int = 8) -> list[Batch]:
        """Return random batches, the same each time."""
        generator = torch.Generator().manual_seed(0)
        inputs = [self.draw(generator) for _ in range(number)]
        return [(x, torch.randint(CLASSES, (len(x),), generator=generator)) for x in inputs]


WORKLOADS = {
    "resnet": Workload(
        name="ResNet-18, half the width",
        build=lambda: build_resnet18(0.5),
        draw=lambda generator: draw_images(32, generator),
        bar=1.01,
        renewed_bar=1.2,
        is_isolated=True,
        has_peers=False,
        rounds=2,
        share=0.3,
    ),
    "transformer": Workload(
        name="transformer of 4 layers",
        build=lambda: Bert(depth=4),
        draw=lambda generator: draw_sentences(16, generator),
        bar=1.01,
        renewed_bar=1.2,
        is_isolated=True,
        has_peers=False,
        rounds=2,
        share=0.25,
    ),
    "lenet": Workload(
        name="LeNet-300-100",
        build=build_lenet,
        draw=lambda generator: torch.randn(128, 784, generator=generator),
        bar=1.05,
        renewed_bar=3.0,
        is_isolated=False,
        has_peers=True,
        rounds=6,
        share=0.3,
    ),
}
