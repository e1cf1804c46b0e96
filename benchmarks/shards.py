"""Ranking models that do not fit one process: `python benchmarks/shards.py`.

Prunes the shards of FSDP2 on a few gloo processes of this machine, in two updates, and counts what
one process hands to collectives in the costlier of them: for global ranking 2 MB at most, also as a
ring sends them on, at every size of the model; the one tensor in which equal scores run out may be
searched for their indices, which doubles it at most. The masks must be those of one
process that has the whole, to the entry, where many weights are tied. Uniform and ERK, which rank
each tensor alone, stand beside it.

Then one rank of 64 prunes its true shards of a transformer of 70 B parameters, in bfloat16:
DTensors on a mesh of 64 ranks whose other 63 are not there. They are taken to hold the same as this
one: a sum over ranks is 64 times what is here, a maximum is what is here. So its numbers are real
for one rank, except that messages take no time. That needs about 5 GB of memory; by
`--simulated-billions` a part of the layers will do.

Prints tables, as Markdown. Exits with 1 if masks differ, or if a target of traffic or memory is
missed. Memory is what Linux says of the process (its "high water mark"), whose allocator gives back
at once what is large.
"""

import argparse
import ctypes
import gc
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune import (
    Allocation,
    ERKAllocation,
    GlobalAllocation,
    PolynomialSchedule,
    Pruner,
    UniformAllocation,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import machine
from tests.processes import processes

MB = 1e6
LARGEST_TRAFFIC = 2 * MB
LARGEST_GROWTH = 2.0  # of the traffic, where equal scores run out in a tensor that must be searched
MEMORY_SLACK = 32 * MB  # Python's and the allocator's own, and counts of digits
M_MMAP_THRESHOLD, LARGE = -3, 2**22  # of glibc: from here on it gives back at once
PASSES, COUNTS = 4, 2**8  # of a ranking in single precision, 8 bits a pass
TENSORS, COLUMNS = 20, 64
RANKS = 64
BILLIONS, LAYERS, WIDTH, INNER, KEYS, VOCABULARY = 70, 80, 8192, 28672, 1024, 32000
HALF_THEN_ALL = PolynomialSchedule(begin=0, end=1, every=1, unit="step", initial=0.5, power=1)


class Traffic(TorchDispatchMode):
    """Counts what this process hands to collectives, and what a ring would make it send.

    Args:
        ranks: How many processes take part.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__()
        both_ways, round_once = 2 * (ranks - 1) / ranks, ranks - 1
        self._collectives = {  # which argument is the message, how often a ring sends its bytes
            "allreduce_": (0, both_ways),
            "all_reduce": (0, both_ways),
            "allgather_": (1, round_once),
            "_allgather_base_": (1, round_once),
            "all_gather_into_tensor": (0, round_once),
            "broadcast_": (0, 1),
        }
        self.messages = 0
        self.handed = 0
        self.sent = 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if DTensor in types:  # what it does inside is seen
            return NotImplemented
        name = function.overloadpacket.__name__
        if function.namespace in ("c10d", "_c10d_functional") and name != "wait_tensor":
            if name not in self._collectives:
                raise NotImplementedError(f"need one of {list(self._collectives)}, got {function}")
            place, times = self._collectives[name]
            message = sum(t.nbytes for t in torch.utils._pytree.tree_leaves(args[place]))
            self.messages += 1
            self.handed += message
            self.sent += message * times
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True, kw_only=True)
class Updates:
    """What two updates have cost one process.

    Args:
        messages: The most that an update handed to collectives.
        handed: Their bytes, of the update with the most.
        sent: The bytes that a ring would make this process send for them.
        seconds: The time of the slower one, with all else that `Pruner.before_step` does.
    """

    messages: int
    handed: int
    sent: float
    seconds: float


def two_updates(
    pruner: Pruner, optimizer: torch.optim.Optimizer, counted: Callable[[], Any]
) -> Updates:
    """Make two, which bring an attached pruner to half of its sparsity and to all of it.

    Args:
        pruner: The pruner.
        optimizer: The only optimizer.
        counted: Makes the context that counts messages.
    """
    traffics, times = [], []
    for _ in range(2):
        with counted() as traffic:
            start = time.perf_counter()
            pruner.before_step(optimizer)
            times.append(time.perf_counter() - start)
        traffics.append(traffic)
        optimizer.step()
    return Updates(
        messages=max(traffic.messages for traffic in traffics),
        handed=max(traffic.handed for traffic in traffics),
        sent=max(traffic.sent for traffic in traffics),
        seconds=max(times),
    )


# -- processes of this machine ---------------------------------------------------------------------


def tied_network(millions: float) -> nn.Sequential:
    """Return matrices of a few dozen different magnitudes, with rows that divide by nothing."""
    generator = torch.Generator().manual_seed(0)
    rows = round(millions * 1e6 / TENSORS / COLUMNS)
    network = nn.Sequential()
    for index in range(TENSORS):
        layer = nn.Linear(COLUMNS, rows + index - TENSORS // 2, bias=False)
        spread = 8 * (1 + index % 5)
        values = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.data = (values * spread).round() / 64
        network.append(layer)
    return network


def sharded(network: nn.Sequential) -> nn.Module:
    """Return it with each matrix cut into rows by FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in network:
        fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def pruned(
    millions: float, allocation: Allocation, *, ranks: int = 1
) -> tuple[Updates, dict[str, Tensor]]:
    """Return what pruning costs this process of several, and the masks of the whole, as bits."""
    network = tied_network(millions)
    model = sharded(network) if ranks > 1 else network
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(sparsity=0.9, schedule=HALF_THEN_ALL, allocation=allocation)
    pruner.attach(model, optimizer, steps=2)
    updates = two_updates(pruner, optimizer, partial(Traffic, ranks))
    masks = pruner.state_dict()["masks"]
    pruner.detach()
    return updates, masks


def pruned_by_several(ranks: int, millions: float, allocation: Allocation) -> Any:
    """Return `pruned` of one process of several."""
    return pruned(millions, allocation, ranks=ranks)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model on several processes, against one process.

    Args:
        ranks: How many processes.
        millions: Weights of the model.
        allocation: Where.
        updates: The cost to the process with the most traffic.
        alone: The cost to one process that has all.
        differing: How many entries of masks are not those of the one process.
    """

    ranks: int
    millions: float
    allocation: Allocation
    updates: Updates
    alone: Updates
    differing: int

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return f"{type(self.allocation).__name__}, {self.millions:g} M, {self.ranks} processes"

    def row(self) -> str:
        """Return its row of the table."""
        its = self.updates
        return (
            f"| {type(self.allocation).__name__} | {self.ranks} | {self.millions:g} M "
            f"| {its.messages} | {its.handed / MB:.3f} | {its.sent / MB:.3f} | {self.differing} "
            f"| {its.seconds:.2f} | {self.alone.seconds:.2f} |"
        )


def differing(masks: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> int:
    """Return in how many bits masks differ."""
    if masks.keys() != others.keys():
        raise ValueError(f"need the masks of {list(masks)}, got those of {list(others)}")
    counts = torch.tensor([int(byte).bit_count() for byte in range(256)])
    return sum(int(counts[(bits ^ others[name]).long()].sum()) for name, bits in masks.items())


def cases(sizes: list[float], worlds: list[int]) -> Iterator[Case]:
    """Yield global ranking at all sizes, and the others at the middle one."""
    middle = sorted(sizes)[len(sizes) // 2]
    plan: list[tuple[Allocation, float]] = [(GlobalAllocation(), size) for size in sorted(sizes)]
    plan += [(UniformAllocation(), middle), (ERKAllocation(), middle)]
    alone = [pruned(millions, allocation) for allocation, millions in plan]
    for ranks in worlds:
        with processes(ranks) as run:
            for (allocation, millions), (its, masks) in zip(plan, alone, strict=True):
                results = run(pruned_by_several, ranks, millions, allocation)
                yield Case(
                    ranks=ranks,
                    millions=millions,
                    allocation=allocation,
                    updates=max((updates for updates, _ in results), key=lambda u: u.sent),
                    alone=its,
                    differing=max(differing(masks, others) for _, others in results),
                )


def missed_by(found: list[Case]) -> Iterator[str]:
    """Yield what is not as it should be."""
    for case in found:
        if case.differing:
            yield f"{case.name}: {case.differing} entries differ from those of one process"
    ranked_together = [case for case in found if isinstance(case.allocation, GlobalAllocation)]
    for case in ranked_together:
        yield from _too_much_traffic(case.name, case.updates)
        least = min(c.updates.sent for c in ranked_together if c.ranks == case.ranks)
        if case.updates.sent > LARGEST_GROWTH * least:
            yield (
                f"{case.name}: the traffic is {case.updates.sent / least:.2f} times that of the "
                f"least at another size, at most {LARGEST_GROWTH} is wanted"
            )


def _too_much_traffic(name: str, updates: Updates) -> Iterator[str]:
    most = max(updates.sent, updates.handed)
    if most > LARGEST_TRAFFIC:
        yield f"{name}: {most / MB:.3f} MB an update, at most {LARGEST_TRAFFIC / MB:g} are wanted"


# -- one rank of 64 --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """One rank of many, pruning its shards.

    Args:
        parameters: Of the whole model.
        pruned: How many of its weights are pruned, of all ranks.
        here: How many of these are here.
        largest: Entries of the largest shard.
        masks: Bytes of tensors that are held after the updates and were not before.
        extra: How much more memory than before there was in use at most.
        updates: The cost.
    """

    parameters: int
    pruned: int
    here: int
    largest: int
    masks: int
    extra: int
    updates: Updates

    @property
    def weights(self) -> int:
        """Bytes of the weights that are here and pruned."""
        return self.here * torch.bfloat16.itemsize

    @property
    def copy(self) -> int:
        """Bytes of the largest shard in single precision."""
        return self.largest * torch.float32.itemsize

    def missed(self) -> Iterator[str]:
        """Yield what is not as it should be."""
        yield from _too_much_traffic(f"one rank of {RANKS}", self.updates)
        if self.masks > self.weights + MEMORY_SLACK:
            yield (
                f"one rank of {RANKS}: {self.masks / MB:,.0f} MB of masks, at most the weights' "
                f"{self.weights / MB:,.0f} are wanted"
            )
        wanted = min(self.masks, self.weights) + self.copy + MEMORY_SLACK
        if self.extra > wanted:
            yield (
                f"one rank of {RANKS}: {self.extra / MB:,.0f} MB more memory at most, "
                f"{wanted / MB:,.0f} are wanted (masks, one copy of the largest shard in single "
                f"precision, and {MEMORY_SLACK / MB:g})"
            )


class Block(nn.Module):
    """The matrices of a layer of a transformer, without what it does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, KEYS, bias=False)
        self.value = nn.Linear(WIDTH, KEYS, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)


def transformer(layers: int) -> nn.Module:
    """Return a transformer with the shards of one rank, in bfloat16."""
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


class RanksAlike:
    """Lets sums over ranks be as if all held the same, and counts as `Traffic` does.

    It looks at the function that the engine calls and not at all operations, which would take
    several times longer; that nothing else is sent, `Traffic` has seen on real processes.

    Args:
        ranks: How many processes there are taken to be.
    """

    def __init__(self, ranks: int) -> None:
        self.messages, self.handed, self.sent = 0, 0, 0.0
        self._ranks = ranks
        self._reduce = torch.distributed.all_reduce
        self._patch = mock.patch.object(torch.distributed, "all_reduce", self._all_reduce)

    def __enter__(self) -> "RanksAlike":
        self._patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.stop()

    def _all_reduce(self, tensor: Tensor, *args: Any, **named: Any) -> None:
        if args or set(named) != {"group"}:
            raise NotImplementedError(f"need a sum, got {args} and {named}")
        self._reduce(tensor, **named)
        tensor.mul_(self._ranks)
        self.messages += 1
        self.handed += tensor.nbytes
        self.sent += 2 * (self._ranks - 1) / self._ranks * tensor.nbytes


def memory(kind: str) -> int:
    """Return bytes of this process in memory: now ("VmRSS"), or at most ("VmHWM")."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def forget_the_most() -> None:
    """Give back what is free, and let the most memory that was in use be what is now."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, LARGE)  # which else grows with what is released
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def held_by_tensors() -> int:
    """Return the bytes of all tensors that are alive.

    Subclasses of tensors are left out: a fake tensor, which tracing makes, has no memory, and a
    DTensor has that of a plain tensor.
    """
    gc.collect()
    alive = (t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter))
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for t in alive
        if t.device.type == "cpu" and t.layout == torch.strided
    }
    return sum(storages.values())


def simulate(layers: int) -> Simulation:
    """Prune the shards of one rank."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    model = transformer(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(
        sparsity={"layers.*": 0.9}, schedule=HALF_THEN_ALL, allocation=GlobalAllocation()
    )
    with RanksAlike(RANKS):
        tensors_before = held_by_tensors()
        forget_the_most()
        before = memory("VmRSS")
        pruner.attach(model, optimizer, steps=2)
    updates = two_updates(pruner, optimizer, partial(RanksAlike, RANKS))
    extra, masks = memory("VmHWM") - before, held_by_tensors() - tensors_before
    shards = [tensor.parameter.to_local().numel() for tensor in pruner.tensors]
    simulation = Simulation(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        pruned=sum(tensor.parameter.numel() for tensor in pruner.tensors),
        here=sum(shards),
        largest=max(shards),
        masks=masks,
        extra=extra,
        updates=updates,
    )
    torch.distributed.destroy_process_group()
    return simulation


def described(its: Simulation) -> str:
    """Return the table of a simulation, beside what paper says."""
    weights = its.pruned / RANKS
    on_paper = PASSES * COUNTS * torch.int64.itemsize
    counts = f"{PASSES} passes x {COUNTS} counts x 8"
    ring = 2 * (RANKS - 1) / RANKS
    held = "masks and what else is held, MB"
    rows = [
        ("weights to prune, M", its.here, "weights / ranks", weights),
        ("their bytes, MB", its.weights, "2 x weights / ranks", 2 * weights),
        (held, its.masks, "1 or 2 x weights / ranks; at most", 2 * weights),
        ("more memory at most, MB", its.extra, "masks + 4 x largest shard", its.masks + its.copy),
        ("handed over an update, MB", its.updates.handed, counts, on_paper),
        ("sent by a ring, MB", its.updates.sent, "2 (ranks - 1) / ranks x that", ring * on_paper),
    ]
    lines = [
        f"One rank of {RANKS}, a transformer of {its.parameters / 1e9:.1f} B parameters:",
        "",
        "| | here | on paper | |",
        "|---|---|---|---|",
        *(
            f"| {what} | {here / MB:,.3f} | {how} | {paper / MB:,.3f} |"
            for what, here, how, paper in rows
        ),
        f"| messages an update | {its.updates.messages} | | |",
        f"| seconds an update, without the network | {its.updates.seconds:.1f} | | |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure all, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 4, 16], help="of weights")
    parser.add_argument(
        "--simulated-billions", type=float, default=BILLIONS, help="of parameters, of 64 ranks"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), "", sep="\n")
    print(
        "| allocation | processes | weights | messages | MB handed over | MB sent by a ring "
        "| entries that differ | s | s of one process |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    found = []
    for case in cases(arguments.millions, arguments.processes):
        found.append(case)
        print(case.row(), flush=True)
    simulation = simulate(max(1, round(LAYERS * arguments.simulated_billions / BILLIONS)))
    print("", described(simulation), "", sep="\n")
    missed = [*missed_by(found), *simulation.missed()]
    print("\n".join(f"missed: {miss}" for miss in missed) or "every target is met")
    sys.exit(int(bool(missed)))


if __name__ == "__main__":
    main()
