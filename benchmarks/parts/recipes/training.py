"""A training of `recipes.py`, and the measurement after it."""

import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.kit.data import FullBatches, Splits
from benchmarks.kit.recording import describe_machine, hide_output
from benchmarks.kit.training import Classifier, count_points, make_quiet_trainer
from benchmarks.parts.recipes.arms import ALLOCATIONS, ARMS, DENSE
from benchmarks.parts.recipes.runs import Run, Setting
from benchmarks.parts.recipes.tasks import Task, hash_data
from lightning_prune import PruningCallback

CHUNK = 1000  # samples that the measurement takes at a time
ALLOWED = 1e-3  # distance between the sparsity that is reached and that which is due


class Trainings:
    """Trains by a setting; the data of a task are read once.

    Args:
        tasks: The tasks.
        folders: The folder of each task; None for a default.
    """

    def __init__(self, tasks: dict[str, Task], folders: dict[str, Path | None]) -> None:
        self.tasks, self.folders = tasks, folders
        self.data: dict[str, tuple[Splits, str]] = {}
        self.versions = describe_versions()

    def read(self, task: str) -> tuple[Splits, str]:
        """Return the data of a task, and the digits that tell them."""
        if task not in self.data:
            splits = self.tasks[task].read(self.folders[task])
            self.data[task] = splits, hash_data(splits)
        return self.data[task]

    def train(self, setting: Setting) -> Run:
        """Return the run of a setting, after a check of the zeros."""
        splits, data = self.read(setting.task)
        start = time.process_time()
        net = fit(self.tasks[setting.task], setting, splits.train)
        accuracy, bits = measure(net, getattr(splits, setting.split))
        seconds = time.process_time() - start
        return Run(*setting, accuracy, bits, round(seconds, 2), data, self.versions)


def fit(task: Task, setting: Setting, train: TensorDataset) -> nn.Module:
    """Return the network after training, with the zeros in place."""
    seed_everything(setting.seed, verbose=False)
    model = Classifier(task.build(), partial(task.make_optimizer, lr=setting.rate))
    callbacks = []
    if setting.arm != DENSE:
        answers = ARMS[setting.arm].timings[setting.timing](setting.seed)
        allocation = ALLOCATIONS[setting.allocation]
        pruning = PruningCallback(sparsity=setting.sparsity, allocation=allocation, **answers)
        callbacks = [pruning]
    with hide_output():
        trainer = make_quiet_trainer(*callbacks, max_steps=setting.steps, max_epochs=-1)
        trainer.fit(model, FullBatches(train, task.batch, setting.seed))
    if callbacks:
        check_zeros(setting, model, pruning)
    return model.net


def check_zeros(setting: Setting, model: Classifier, pruning: PruningCallback) -> None:
    """End the script if a pruned weight is not 0, or if the sparsity is not that of the setting."""
    parameters = dict(model.named_parameters())
    masks = pruning.masks
    living = [name for name, mask in masks.items() if parameters[name][~mask].any()]
    kept = sum(int(mask.sum()) for mask in masks.values())
    sparsity = 1 - kept / sum(mask.numel() for mask in masks.values())
    if living or abs(sparsity - setting.sparsity) > ALLOWED:
        sys.exit(f"{setting}: the sparsity is {sparsity}, and not all zeros are there in {living}")


@torch.no_grad()
def measure(net: nn.Module, split: TensorDataset) -> tuple[float, float]:
    """Return the accuracy in points, and the bits of an answer."""
    net.eval()
    points, bits = 0.0, 0.0
    for start in range(0, len(split), CHUNK):
        samples, answers = split[start : start + CHUNK]
        logits, share = net(samples), len(samples) / len(split)
        points += share * count_points(logits, answers)
        bits += share * nn.functional.cross_entropy(logits, answers).item() / math.log(2)
    return points, bits


def describe_versions() -> str:
    """Return the versions, the processor and the commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    folder = Path(__file__).parent
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return describe_machine()
    return f"{describe_machine()}; commit {found.stdout.strip() or 'unknown'}"
