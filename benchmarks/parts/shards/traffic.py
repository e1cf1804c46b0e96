"""The bytes that a process hands to collectives, and two updates that are counted."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from unittest import mock

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kit.judging import Bar
from lightning_prune import PolynomialSchedule, Pruner

MB = 1e6
LARGEST_TRAFFIC = 2 * MB
HALF_THEN_ALL = PolynomialSchedule(begin=0, end=1, every=1, unit="step", initial=0.5, power=1)


class Counter(Protocol):
    """A context that counts messages: their number, their bytes, and the bytes of a ring."""

    messages: int
    handed: int
    sent: float

    def __enter__(self) -> "Counter": ...

    def __exit__(self, *error: object) -> None: ...


class Traffic(TorchDispatchMode):
    """Counts the messages that this process hands to collectives.

    Args:
        ranks: Number of processes. A ring sends each message on, as often as this number demands.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__()
        both_ways, once_around = 2 * (ranks - 1) / ranks, ranks - 1
        self._collectives = {  # the argument with the message, and how often a ring sends it
            "allreduce_": (0, both_ways),
            "all_reduce": (0, both_ways),
            "allgather_": (1, once_around),
            "_allgather_base_": (1, once_around),
            "all_gather_into_tensor": (0, once_around),
            "broadcast_": (0, 1),
        }
        self.messages = 0
        self.handed = 0
        self.sent = 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if DTensor in types:  # the operations inside a DTensor come here, too
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


class EqualRanks:
    """Computes sums over ranks as if all ranks held the same, and counts as `Traffic` does.

    It replaces the function that the engine calls. To look at every operation would take several
    times longer, and `Traffic` shows with real processes that nothing else is sent.

    Args:
        ranks: The assumed number of processes.
    """

    def __init__(self, ranks: int) -> None:
        self.messages, self.handed, self.sent = 0, 0, 0.0
        self._ranks = ranks
        self._reduce = torch.distributed.all_reduce
        self._patch = mock.patch.object(torch.distributed, "all_reduce", self._all_reduce)

    def __enter__(self) -> "EqualRanks":
        self._patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.stop()

    def _all_reduce(self, tensor: Tensor, *args: Any, **named: Any) -> None:
        if args or not set(named) <= {"group"}:
            raise NotImplementedError(f"need a sum, got {args} and {named}")
        self._reduce(tensor, **named)
        tensor.mul_(self._ranks)
        self.messages += 1
        self.handed += tensor.nbytes
        self.sent += 2 * (self._ranks - 1) / self._ranks * tensor.nbytes


@dataclass(frozen=True, kw_only=True)
class Updates:
    """The cost of two updates to a process.

    Args:
        messages: The most messages that an update handed to collectives.
        handed: The most bytes of an update in these messages.
        sent: The most bytes that a ring would make this process send for an update.
        seconds: The time of the slower update, with all other work of `Pruner.before_step`.
    """

    messages: int
    handed: int
    sent: float
    seconds: float

    def set_bar(self, name: str) -> Bar:
        """Return the bar of the traffic."""
        most = max(self.sent, self.handed)
        return Bar(name=f"{name}, MB an update", value=most / MB, most=LARGEST_TRAFFIC / MB)


def make_two_updates(
    pruner: Pruner, optimizer: torch.optim.Optimizer, count: Callable[[], Counter]
) -> Updates:
    """Bring an attached pruner to half of its sparsity, and then to all of it.

    Args:
        pruner: The pruner.
        optimizer: The only optimizer.
        count: Makes a context that counts messages.
    """
    counters, times = [], []
    for _ in range(2):
        with count() as counter:
            start = time.perf_counter()
            pruner.before_step(optimizer)
            times.append(time.perf_counter() - start)
        counters.append(counter)
        optimizer.step()
    return Updates(
        messages=max(counter.messages for counter in counters),
        handed=max(counter.handed for counter in counters),
        sent=max(counter.sent for counter in counters),
        seconds=max(times),
    )
