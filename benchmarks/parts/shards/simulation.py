"""A rank of 64 that prunes the shards of a transformer, while the other ranks are not there."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from benchmarks.kit.judging import Bar
from benchmarks.kit.memory import count_process_bytes, reset_process_peak
from benchmarks.kit.recording import write_markdown_header, write_markdown_row
from benchmarks.parts.shards.traffic import (
    HALF_THEN_ALL,
    MB,
    EqualRanks,
    Updates,
    make_two_updates,
)
from lightning_prune import GlobalAllocation, NMPattern, Pruner, WandaCriterion

MEMORY_SLACK = 32 * MB  # for Python, the allocator, and counts of digits
LARGE = 2**22  # bytes; from this size on, the allocator gives memory back at once
PASSES, COUNTS = 4, 2**8  # of a ranking in single precision, 8 bits a pass
RANKS = 64
BILLIONS, LAYERS, WIDTH, INNER, KEYS, VOCABULARY = 70, 80, 8192, 28672, 1024, 32000


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A rank of many that prunes shards.

    Args:
        parameters: Number of parameters of the whole model.
        pruned: Number of pruned weights on all ranks.
        here: Number of pruned weights on this rank.
        largest: Entries of the largest shard.
        masks: Bytes of the tensors after the updates, less those before.
        extra: The peak of the process, less the memory before.
        updates: The cost of the updates.
        recipe: The recipe in words.
        inputs: Bytes of the sums over input channels that each step hands over.
        searches: Number of searches in histograms in an update.
    """

    parameters: int
    pruned: int
    here: int
    largest: int
    masks: int
    extra: int
    updates: Updates
    recipe: str = "global magnitude"
    inputs: int = 0
    searches: int = 1

    @property
    def weights(self) -> int:
        """Bytes of the pruned weights on this rank."""
        return self.here * torch.bfloat16.itemsize

    @property
    def copy(self) -> int:
        """Bytes of the largest shard in single precision."""
        return self.largest * torch.float32.itemsize

    def set_bars(self) -> Iterator[Bar]:
        """Yield the bars: the traffic, masks as large as the weights, and a peak of one copy."""
        name = f"one rank of {RANKS}, {self.recipe}"
        if not self.inputs:  # sums over input channels grow with the model
            yield self.updates.set_bar(name)
        most = (self.weights + MEMORY_SLACK) / MB
        yield Bar(name=f"{name}, MB of masks", value=self.masks / MB, most=most)
        most = (min(self.masks, self.weights) + self.copy + MEMORY_SLACK) / MB
        yield Bar(name=f"{name}, MB more memory", value=self.extra / MB, most=most)

    def write_table(self) -> str:
        """Return the measured numbers beside those that follow on paper."""
        weights, updates = self.pruned / RANKS, self.updates
        on_paper = self.inputs + self.searches * PASSES * COUNTS * torch.int64.itemsize
        counts = f"{PASSES} passes x {COUNTS} counts x 8 x {self.searches}"
        counts += f" + {self.inputs / MB:.3f} of inputs" if self.inputs else ""
        ring = 2 * (RANKS - 1) / RANKS
        most, peak = "1 or 2 x weights / ranks; at most", "masks + 4 x largest shard"
        rows = [
            ("weights to prune, M", self.here, "weights / ranks", weights),
            ("their bytes, MB", self.weights, "2 x weights / ranks", 2 * weights),
            ("masks and all else that is held, MB", self.masks, most, 2 * weights),
            ("more memory at most, MB", self.extra, peak, self.masks + self.copy),
            ("handed over an update, MB", updates.handed, counts, on_paper),
            ("sent by a ring, MB", updates.sent, "2 (ranks - 1) / ranks x that", ring * on_paper),
        ]
        lines = [
            f"One rank of {RANKS}, a transformer of {self.parameters / 1e9:.1f} B parameters, "
            f"{self.recipe}:",
            "",
            write_markdown_header("", "here", "on paper", ""),
            *(
                write_markdown_row(name, f"{here / MB:,.3f}", formula, f"{paper / MB:,.3f}")
                for name, here, formula, paper in rows
            ),
            write_markdown_row("messages an update", updates.messages, "", ""),
            write_markdown_row(
                "seconds an update, without the network", f"{updates.seconds:.1f}", "", ""
            ),
        ]
        return "\n".join(lines)


class Block(nn.Module):
    """The matrices of a layer of a transformer, without their products."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, KEYS, bias=False)
        self.value = nn.Linear(WIDTH, KEYS, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)


def build_transformer(layers: int) -> nn.Module:
    """Return a transformer with the shards of a rank, in bfloat16."""
    from torch.distributed.device_mesh import init_device_mesh

    with torch.device("meta"):
        model = nn.ModuleDict(
            {
                "embedding": nn.Embedding(VOCABULARY, WIDTH),
                "layers": nn.ModuleList(Block() for _ in range(layers)),
                "head": nn.Linear(WIDTH, VOCABULARY, bias=False),
            }
        )
    mesh = init_device_mesh("cpu", (RANKS,))
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            rows, columns = module.weight.shape
            here = torch.empty(rows // RANKS, columns, dtype=torch.bfloat16)
            here.normal_(std=columns**-0.5, generator=generator)
            whole = DTensor.from_local(here, mesh, [Shard(0)], run_check=False)
            module.weight = nn.Parameter(whole)
    return model


def count_tensor_bytes() -> int:
    """Return the bytes of all living tensors on the CPU; shared storage counts once.

    Only plain tensors hold memory. A `DTensor` wraps a plain tensor, and a fake tensor has no data.
    """
    gc.collect()
    alive = (t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter))
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for t in alive
        if t.device.type == "cpu" and t.layout == torch.strided
    }
    return sum(storages.values())


GLOBAL = {"sparsity": {"layers.*": 0.9}, "allocation": GlobalAllocation()}
WANDA = {
    "sparsity": {"layers.*": 0.5},
    "pattern": NMPattern(n=2, m=4),
    "criterion": WandaCriterion(),
}


def simulate(layers: int, *, is_wanda: bool = False) -> Simulation:
    """Prune the shards of a rank, in a transformer of so many layers.

    Args:
        layers: Number of layers.
        is_wanda: Whether 2:4 by inputs is simulated; else global magnitude is.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    model = build_transformer(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recipe: dict[str, Any] = WANDA if is_wanda else GLOBAL
    pruner = Pruner(schedule=HALF_THEN_ALL, **recipe)
    with EqualRanks(RANKS):
        tensors_before = count_tensor_bytes()
        reset_process_peak(LARGE)
        before = count_process_bytes("VmRSS")
        pruner.attach(model, optimizer, steps=2)
    seen = [sums for tensor in pruner.tensors for sums in tensor.seen.values()]
    inputs = sum(sums.nbytes for sums in seen)

    def count() -> EqualRanks:
        for sums in seen:
            sums.fill_(1.0)  # as hooks do in a forward pass
        return EqualRanks(RANKS)

    updates = make_two_updates(pruner, optimizer, count)
    extra = count_process_bytes("VmHWM") - before
    masks = count_tensor_bytes() - tensors_before
    shards = [tensor.parameter.to_local().numel() for tensor in pruner.tensors]
    simulation = Simulation(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        pruned=sum(tensor.parameter.numel() for tensor in pruner.tensors),
        here=sum(shards),
        largest=max(shards),
        masks=masks,
        extra=extra,
        updates=updates,
        recipe="2:4 by Wanda" if is_wanda else "global magnitude",
        inputs=inputs,
        searches=len(shards) if is_wanda else 1,
    )
    torch.distributed.destroy_process_group()
    return simulation
