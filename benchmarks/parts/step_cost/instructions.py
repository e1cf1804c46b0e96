"""The instructions of a step of LeNet, which valgrind counts."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.kit.processes import run_script
from benchmarks.kit.training import make_quiet_trainer
from benchmarks.parts.step_cost.training import WARM_UP, WORKLOADS, Batches, Stopwatch, Training
from benchmarks.parts.step_cost.ways import BASE, DENSE, OURS

COUNTED_STEPS = 20


class CountingSwitch(Callback):
    """Makes valgrind count the steps in the middle, without the start and the end."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin when the masks are made, and stop before the last step."""
        if trainer.global_step in (WARM_UP, WARM_UP + COUNTED_STEPS):
            switch = "on" if trainer.global_step == WARM_UP else "off"
            command = ["callgrind_control", f"--instr={switch}", str(os.getpid())]
            subprocess.run(command, check=True)


def train_counted(name: str) -> None:
    """Train LeNet in the named way; this process must run under valgrind."""
    torch.set_num_threads(1)
    workload = WORKLOADS["lenet"]
    module = Training(workload.build())
    callbacks = [CountingSwitch(), *BASE[name](module, Stopwatch())]
    steps = WARM_UP + COUNTED_STEPS + 1
    trainer = make_quiet_trainer(*callbacks, max_epochs=-1, max_steps=steps)
    trainer.fit(module, Batches(workload.draw_batches()))


def count_instructions(name: str) -> float:
    """Return the instructions of a step in the named way, counted in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts"
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
        launcher = [*valgrind, f"--callgrind-out-file={file}"]
        run_script("benchmarks/step_cost.py", "--counted", name, launcher=launcher, check=True)
        counts = re.findall(r"^(?:summary|totals): (\d+)", file.read_text(), re.MULTILINE)
        return int(counts[-1]) / COUNTED_STEPS


def print_instructions() -> None:
    """Count the instructions of a step with and without the callback, and print their ratio."""
    if shutil.which("valgrind") is None:
        print("valgrind is not installed")
        return
    counts = {}
    for name in (DENSE, OURS):
        counts[name] = count_instructions(name)
        print(f"{name}: {counts[name] / 1e6:.3f} million instructions a step", flush=True)
    print(f"instructions of a step of LeNet over without: {counts[OURS] / counts[DENSE]:.4f}")
