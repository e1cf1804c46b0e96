"""The cost of `SparsityMonitor` in an epoch."""

import gc
import itertools
import tempfile
import time
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from benchmarks.kit.judging import Bar
from benchmarks.kit.recording import hide_output
from benchmarks.kit.training import make_quiet_trainer
from benchmarks.parts.step_cost.training import Batch, Stopwatch, Training, Workload
from benchmarks.parts.step_cost.ways import SPARSITY
from lightning_prune import PruningCallback, SparsityMonitor

LARGEST_SHARE, MOST_STEPS, LEAST_STEPS = 0.01, 50, 10
DRAWN_EVERY = 5  # epochs, by default


class Epoch(Callback):
    """Notes when the epoch begins, and when the training ends."""

    start = end = 0.0

    def on_train_epoch_start(self, *args: Any) -> None:
        """Note the begin."""
        self.start = time.process_time()

    def on_train_end(self, *args: Any) -> None:
        """Note the end, after all other callbacks."""
        self.end = time.process_time()


def count_steps(module: Training, batch: Batch, seconds: float) -> int:
    """Return the number of steps that fit in the time, from 10 to 50."""
    start = time.perf_counter()
    module.training_step(batch, 0).backward()
    return min(MOST_STEPS, max(LEAST_STEPS, int(seconds / (time.perf_counter() - start))))


def judge_monitor(workload: Workload, seconds: float) -> Bar:
    """Measure an epoch with `SparsityMonitor`, print the cost, and return the bar."""
    gc.collect()  # what is left of other trainings must not be collected inside of a hook
    stopwatch, epoch, pruning = Stopwatch(), Epoch(), PruningCallback(sparsity=SPARSITY)
    monitor = SparsityMonitor(histograms_every=1)
    stopwatch.time_hooks(monitor)
    batches = workload.draw_batches()
    torch.manual_seed(0)
    module = Training(workload.build())
    steps = count_steps(module, batches[0], seconds)
    data = DataLoader([*itertools.islice(itertools.cycle(batches), steps)], batch_size=None)
    with tempfile.TemporaryDirectory() as folder, hide_output():
        logger = TensorBoardLogger(folder)
        trainer = make_quiet_trainer(pruning, monitor, epoch, max_epochs=1, logger=logger)
        trainer.fit(module, data)
    spent = dict(stopwatch.seconds)
    spent["on_train_epoch_end"] /= DRAWN_EVERY
    share = sum(spent.values()) / (epoch.end - epoch.start - sum(stopwatch.seconds.values()))
    parts = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in spent.items() if s > 1e-5)
    print(
        f"\nSparsityMonitor, {workload.name}, an epoch of {steps} steps with "
        f"{pruning.pruner.updates} updates: {100 * share:.3f} % of the epoch, "
        f"bar {100 * LARGEST_SHARE:.0f} %; ms in {parts}",
        flush=True,
    )
    return Bar(name="SparsityMonitor, share of an epoch", value=share, most=LARGEST_SHARE)
