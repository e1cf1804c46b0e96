"""Trainings in threads of their own, which take turns block by block."""

import contextlib
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.kit.training import make_quiet_trainer
from benchmarks.parts.step_cost.training import WARM_UP, Batches, Stopwatch, Training, Workload
from benchmarks.parts.step_cost.ways import (
    BASE,
    DENSE,
    PEERS,
    SPARSITY,
    Equip,
    train_dense,
    train_dense_and_time,
)

BLOCK_SECONDS = 0.25
FASTEST = 0.1  # of the blocks


class Turns(Callback):
    """Holds a training at each batch until it may continue for a block of steps."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.steps = self.left = WARM_UP
        self.start = self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Wait for the next turn, if this turn is over."""
        if self.left == 0:
            self.seconds = time.process_time() - self.start
            self.done.release()
            self.go.acquire()
            if self.steps == 0:
                trainer.should_stop, self.steps = True, 1
            self.left, self.start = self.steps, time.process_time()
        self.left -= 1


class Lane:
    """A training in a thread of its own.

    Args:
        workload: The workload.
        equip: Changes the module, and returns the callbacks.

    Raises:
        RuntimeError: If a pruned training has another sparsity than 0.9.
    """

    def __init__(self, workload: Workload, equip: Equip) -> None:
        torch.manual_seed(0)
        self.stopwatch, self.turns = Stopwatch(), Turns()
        self.module = Training(workload.build())
        callbacks = equip(self.module, self.stopwatch)
        self.trainer = make_quiet_trainer(self.turns, *callbacks, max_epochs=-1)
        self.batches = Batches(workload.draw_batches())
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()
        self._wait()
        self.zeros = self.module.zeros
        is_dense = equip in (train_dense, train_dense_and_time)
        if not is_dense and abs(self.zeros - SPARSITY) > 0.001:
            raise RuntimeError(
                f"need a sparsity of {SPARSITY} before the timing, got {self.zeros:.4f} "
                f"from {equip.__name__}"
            )

    def time_block(self, steps: int) -> float:
        """Make a block of steps, and return the mean seconds of a step."""
        self.stopwatch.seconds.clear()
        self.turns.steps = steps
        self.turns.go.release()
        self._wait()
        return self.turns.seconds / steps

    def finish(self) -> None:
        """End the training."""
        self.turns.steps = 0
        self.turns.go.release()
        self.thread.join()
        self._wait()

    def _fit(self) -> None:
        torch.set_num_threads(1)
        try:
            self.trainer.fit(self.module, self.batches)
        except BaseException as error:
            self.error = error
        self.turns.done.release()

    def _wait(self) -> None:
        self.turns.done.acquire()
        if self.error is not None:
            raise self.error


@dataclass
class Times:
    """The times of a way to train.

    Args:
        blocks: Seconds of a step, of each block.
        inside: Seconds of a step in each timed call, of the same blocks.
        zeros: The fraction of zeros in the weights before the timing.
    """

    blocks: list[float] = field(default_factory=list)
    inside: list[dict[str, float]] = field(default_factory=list)
    zeros: float = 0.0

    def time_block(self, lane: Lane, steps: int) -> None:
        """Time another block."""
        self.zeros = lane.zeros
        self.blocks.append(lane.time_block(steps))
        self.inside.append({name: s / steps for name, s in lane.stopwatch.seconds.items()})

    @property
    def minimum(self) -> float:
        """The fastest block."""
        return min(self.blocks)

    @property
    def fastest(self) -> float:
        """The mean of the fastest tenth of the blocks."""
        chosen = self._choose_fastest()
        return sum(self.blocks[index] for index in chosen) / len(chosen)

    @property
    def isolated(self) -> dict[str, float]:
        """The mean seconds of each timed call, over the fastest tenth of the blocks."""
        chosen, means = self._choose_fastest(), defaultdict[str, float](float)
        for index in chosen:
            for name, seconds in self.inside[index].items():
                means[name] += seconds / len(chosen)
        return dict(means)

    def _choose_fastest(self) -> list[int]:
        ranked = sorted(range(len(self.blocks)), key=self.blocks.__getitem__)
        return ranked[: max(1, round(FASTEST * len(ranked)))]


def measure(workload: Workload, seconds: float) -> tuple[dict[str, Times], list[str]]:
    """Let all trainings take turns; return their times, and the names of absent peers.

    Args:
        workload: The workload.
        seconds: The time for all rounds; the first round always makes a block of each training.
    """
    peers = {name: equip for name, (_, equip) in PEERS.items()} if workload.has_peers else {}
    times: dict[str, Times] = defaultdict(Times)
    absent: set[str] = set()
    order = random.Random(0)
    start = time.perf_counter()
    for number in range(workload.rounds):
        deadline = start + seconds * (number + 1) / workload.rounds
        if times and time.perf_counter() > deadline:
            continue
        lanes: dict[str, Lane] = {}
        for name, equip in _shuffle(BASE | peers, order):
            with _note_absence(name, absent):
                lanes[name] = Lane(workload, equip)
        steps = max(1, round(BLOCK_SECONDS / lanes[DENSE].time_block(1)))
        while not times or time.perf_counter() < deadline:
            for name, lane in _shuffle(lanes, order):
                times[name].time_block(lane, steps)
        for lane in lanes.values():
            lane.finish()
    return dict(times), sorted(absent)


def _shuffle(named: Mapping[str, Any], order: random.Random) -> list[tuple[str, Any]]:
    return order.sample([*named.items()], len(named))


@contextlib.contextmanager
def _note_absence(name: str, absent: set[str]) -> Iterator[None]:
    try:
        yield
    except ImportError:
        absent.add(name)
