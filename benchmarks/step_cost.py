"""What a training step costs while no update is due: `python benchmarks/step_cost.py`.

Trains a module in a Lightning Trainer with `PruningCallback`, masks at sparsity 0.9 and no update
due, and without it, on random batches made once in memory: one thread, fused AdamW, no logger, no
progress bar, no checkpoints, nothing logged by the module. Workloads: ResNet-18 of half the width
at 32 x 32, batch 32 (at full width a step takes two seconds, which leaves too few blocks); a
transformer encoder of 4 layers, width 256, 64 words, batch 16; LeNet-300-100, batch 128, the worst
case.

Each training has a thread of its own, of which one at a time goes on for a block of steps, in
random order. A block is timed from one `on_train_batch_start` to another, so it holds all of
Lightning's loop; the clock is the CPU time of the process, which does not count the turns of other
programs. Trainings are built anew in each round (2, of LeNet 6), as where tensors lie in memory
makes a difference, too; a second training without the callback shows how far two equals differ,
and both together are what the others are compared with. One more training with the callback is
timed inside: its hooks, those of its optimizer, and Lightning's collecting of what was logged.

Two ratios are printed. The isolated one, a step over the same step less what was timed inside, in
the fastest tenth of the blocks, decides for ResNet-18 and the transformer, of which two equals
differ by more than their bar of 1.01. It leaves out what pruning slows down elsewhere, as by
filling the cache. The ratio of the means of the fastest tenth of the blocks decides for LeNet.

Peers are measured on LeNet only, for time, each in its documented way at sparsity 0.9, which is
checked before anything is timed: Lightning's `ModelPruning` and `torch.nn.utils.prune`, both
reparametrised with a hook; torch.ao's `WeightNormSparsifier`, reparametrised by
`torch.nn.utils.parametrize`; where they are installed (`pip install torchao coremltools`) torchao's
PAT in the phase that freezes the zeros, and coremltools' `MagnitudePruner`. No peer may be cheaper
by the fastest tenth.

After ResNet-18 comes what the hooks of `SparsityMonitor` cost in an epoch of 50 steps with
TensorBoard, of which 21 update the masks along the default ramp. The defaults draw histograms in
each fifth epoch, so a fifth of one drawing is counted.

`--callgrind` counts the instructions of a step of LeNet with and without the callback instead,
under valgrind; it needs some minutes and judges nothing. Valgrind knows no AVX-512: where there is
that, products take fewer instructions than it counts, and the ratio is larger.

Prints tables as Markdown; exits with 1 if a target is missed.
"""

import argparse
import contextlib
import io
import itertools
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from lightning_prune import OneShotSchedule, PruningCallback, SparsityMonitor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.architectures import CLASSES, Bert, images, resnet18, sentences
from benchmarks.machine import machine

SPARSITY = 0.9
BLOCK_SECONDS = 0.25
FIRST_EPOCH = 2  # batches, after which peers that prune between epochs have pruned
WARM_UP = 4  # steps
FASTEST = 0.1  # of the blocks
MONITOR_BAR, MONITOR_STEPS = 0.01, 50
COUNTED_STEPS = 20
DENSE, AGAIN, OURS, INSIDE = "without", "without, again", "PruningCallback", "timed inside"

Batch = tuple[Tensor, Tensor]


class Batches:
    """A short first epoch, then one without end."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.epochs = batches, 0

    def __iter__(self) -> Iterator[Batch]:
        self.epochs += 1  # once a batch is asked for: Lightning also makes iterators to look at
        yield from self.batches[:FIRST_EPOCH] if self.epochs == 1 else itertools.cycle(self.batches)


class Stopwatch:
    """Adds up the time spent in calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def timed_call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = call(*args, **kwargs)
            self.seconds[name] += time.process_time() - start
            return result

        return timed_call

    def hold_to(self, callback: Callback) -> None:
        """Time all hooks that a callback has."""
        for name in dir(Callback):
            if name.startswith("on_") and getattr(type(callback), name) is not getattr(
                Callback, name
            ):
                setattr(callback, name, self.timed(name, getattr(callback, name)))


class Training(LightningModule):
    """Classifies; plain, unless a peer has to wrap the optimizer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.optimizer: Callable[[], torch.optim.Optimizer] = lambda: torch.optim.AdamW(
            self.parameters(), fused=True
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.optimizer()

    @property
    def layers(self) -> list[nn.Module]:
        """What has weights to prune."""
        return [m for m in self.network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    @property
    def zeros(self) -> float:
        """The fraction of zeros in the weights that the layers use."""
        weights = [layer.weight.detach() for layer in self.layers]
        return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


Equip = Callable[[Training, Stopwatch], list[Callback]]


def dense(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Train without pruning."""
    return []


def ours(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Prune in the first step, then no more."""
    schedule = OneShotSchedule(end=0, unit="step")
    return [PruningCallback(sparsity=SPARSITY, schedule=schedule)]


class Inside(Callback):
    """Times Lightning's collecting of what callbacks have logged."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time what the loop calls for that after each batch."""
        connector = trainer._logger_connector
        for name in ("on_batch_end", "update_train_step_metrics"):
            call = getattr(connector, name)
            setattr(connector, name, self.stopwatch.timed("collecting of logs", call))


def timed_inside(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Prune, and time everything that is called for that."""

    class TimedAdamW(torch.optim.AdamW):
        def register_step_post_hook(self, hook: Any) -> Any:
            return super().register_step_post_hook(stopwatch.timed("optimizer hook", hook))

        def register_step_pre_hook(self, hook: Any) -> Any:
            return super().register_step_pre_hook(stopwatch.timed("optimizer hook", hook))

    module.optimizer = lambda: TimedAdamW(module.parameters(), fused=True)
    callbacks = ours(module, stopwatch)
    stopwatch.hold_to(callbacks[0])
    return [*callbacks, Inside(stopwatch)]


def model_pruning(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Let Lightning prune at the end of the first epoch."""
    pruned = [(layer, "weight") for layer in module.layers]
    once = {"amount": SPARSITY, "apply_pruning": lambda epoch: epoch == 0}
    return [ModelPruning("l1_unstructured", parameters_to_prune=pruned, **once)]


def torch_prune(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Reparametrise by `torch.nn.utils.prune` before training."""
    pruned = [(layer, "weight") for layer in module.layers]
    prune.global_unstructured(pruned, prune.L1Unstructured, amount=SPARSITY)
    return []


def torch_ao(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Reparametrise by `torch.nn.utils.parametrize`, as torch.ao's sparsifiers do."""
    from torch.ao.pruning import WeightNormSparsifier

    sparsifier = WeightNormSparsifier(
        sparsity_level=SPARSITY, sparse_block_shape=(1, 1), zeros_per_block=1
    )
    names = {id(layer): name for name, layer in module.named_modules()}
    config = [{"tensor_fqn": f"{names[id(layer)]}.weight"} for layer in module.layers]
    sparsifier.prepare(module, config)
    sparsifier.step()
    return []


def torchao_pat(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Wrap the optimizer, and reach the phase in which the zeros are frozen."""
    from torchao.prototype.pat.optim import PruneOptimizer

    weights = [layer.weight for layer in module.layers]
    known = {id(weight) for weight in weights}
    kind = {"prox_type": "MinSparsityConstraint", "group_type": "KElementGrouper", "k": 1}
    pruned = {"params": weights, "min_sparsity": SPARSITY, **kind}
    others = {"params": [p for p in module.parameters() if id(p) not in known]}
    module.optimizer = lambda: PruneOptimizer(
        torch.optim.AdamW([pruned, others], fused=True), healing_start_step=FIRST_EPOCH
    )
    return []


def coremltools(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Reparametrise, and step the pruner after each batch."""
    from coremltools.optimize.torch.pruning import MagnitudePruner, MagnitudePrunerConfig

    config = {"global_config": {"target_sparsity": SPARSITY}}
    pruner = MagnitudePruner(module.network, MagnitudePrunerConfig.from_dict(config))
    pruner.prepare(inplace=True)

    class Step(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            pruner.step()

    return [Step()]


BASE: Mapping[str, Equip] = {DENSE: dense, AGAIN: dense, OURS: ours, INSIDE: timed_inside}
PEERS: Mapping[str, tuple[str, Equip]] = {
    "ModelPruning": ("lightning", model_pruning),
    "torch.nn.utils.prune": ("torch", torch_prune),
    "torch.ao WeightNormSparsifier": ("torch", torch_ao),
    "torchao PAT": ("torchao", torchao_pat),
    "coremltools MagnitudePruner": ("coremltools", coremltools),
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A network with its batches and its bar.

    Args:
        name: Its name.
        network: Makes the network.
        inputs: Makes a batch of inputs.
        bar: What a step with the callback may cost, as a multiple of one without.
        isolated: Whether the time in our hooks decides, or else the fastest blocks.
        peers: Whether peers are measured, too.
        rounds: How often the trainings are built anew.
        share: Of the time for all.
    """

    name: str
    network: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]
    bar: float
    isolated: bool
    peers: bool
    rounds: int
    share: float

    def batches(self, number: int = 8) -> list[Batch]:
        """Return random batches."""
        generator = torch.Generator().manual_seed(0)
        inputs = [self.inputs(generator) for _ in range(number)]
        return [(x, torch.randint(CLASSES, (len(x),), generator=generator)) for x in inputs]


def lenet() -> nn.Module:
    """Return LeNet-300-100."""
    layers = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers)


WORKLOADS = {
    "resnet": Workload(
        name="ResNet-18, half the width",
        network=lambda: resnet18(0.5),
        inputs=lambda generator: images(32, generator),
        bar=1.01,
        isolated=True,
        peers=False,
        rounds=2,
        share=0.3,
    ),
    "transformer": Workload(
        name="transformer of 4 layers",
        network=lambda: Bert(depth=4),
        inputs=lambda generator: sentences(16, generator),
        bar=1.01,
        isolated=True,
        peers=False,
        rounds=2,
        share=0.25,
    ),
    "lenet": Workload(
        name="LeNet-300-100",
        network=lenet,
        inputs=lambda generator: torch.randn(128, 784, generator=generator),
        bar=1.05,
        isolated=False,
        peers=True,
        rounds=6,
        share=0.3,
    ),
}
MONITOR_SHARE = 0.15


class Turns(Callback):
    """Lets a training go on for a block of steps, when it is told to."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.steps = self.left = WARM_UP
        self.start = self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Wait for the next turn, if this one is over."""
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
        workload: What is trained.
        equip: What is added to it.
    """

    def __init__(self, workload: Workload, equip: Equip) -> None:
        torch.manual_seed(0)
        self.stopwatch, self.turns = Stopwatch(), Turns()
        self.module = Training(workload.network())
        callbacks = equip(self.module, self.stopwatch)
        self.trainer = _trainer([self.turns, *callbacks], max_epochs=-1)
        self.batches = Batches(workload.batches())
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()
        self._wait()
        self.zeros = self.module.zeros
        if equip is not dense and abs(self.zeros - SPARSITY) > 0.001:
            raise RuntimeError(
                f"need a sparsity of {SPARSITY} before anything is timed, got {self.zeros:.4f} "
                f"from {equip.__name__}"
            )

    def block(self, steps: int) -> float:
        """Make some steps; return the seconds of one."""
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
    """What was measured of one way to train.

    Args:
        blocks: Seconds of a step, of each block.
        inside: Of the same blocks, seconds of a step in each thing that was timed inside.
        zeros: The fraction of zeros in the weights when that began.
    """

    blocks: list[float] = field(default_factory=list)
    inside: list[dict[str, float]] = field(default_factory=list)
    zeros: float = 0.0

    def note(self, lane: Lane, steps: int) -> None:
        """Time one more block."""
        self.zeros = lane.zeros
        self.blocks.append(lane.block(steps))
        self.inside.append({name: s / steps for name, s in lane.stopwatch.seconds.items()})

    @property
    def minimum(self) -> float:
        """The fastest block."""
        return min(self.blocks)

    @property
    def fastest(self) -> float:
        """The mean of the fastest tenth of the blocks."""
        chosen = self._fastest()
        return sum(self.blocks[index] for index in chosen) / len(chosen)

    @property
    def isolated(self) -> dict[str, float]:
        """Means over the fastest tenth of the blocks of what was timed inside."""
        chosen, means = self._fastest(), defaultdict[str, float](float)
        for index in chosen:
            for name, seconds in self.inside[index].items():
                means[name] += seconds / len(chosen)
        return dict(means)

    def _fastest(self) -> list[int]:
        ranked = sorted(range(len(self.blocks)), key=self.blocks.__getitem__)
        return ranked[: max(1, round(FASTEST * len(ranked)))]


def measure(workload: Workload, seconds: float) -> tuple[dict[str, Times], list[str]]:
    """Let all trainings take turns; return their times and the names of absent peers."""
    peers = {name: equip for name, (_, equip) in PEERS.items()} if workload.peers else {}
    times: dict[str, Times] = defaultdict(Times)
    absent: set[str] = set()
    order = random.Random(0)
    start = time.perf_counter()
    for number in range(workload.rounds):
        deadline = start + seconds * (number + 1) / workload.rounds
        if times and time.perf_counter() > deadline:
            continue
        lanes: dict[str, Lane] = {}
        for name, equip in _shuffled(BASE | peers, order):
            with _noting_absence(name, absent):
                lanes[name] = Lane(workload, equip)
        steps = max(1, round(BLOCK_SECONDS / lanes[DENSE].block(1)))
        while not times or time.perf_counter() < deadline:
            for name, lane in _shuffled(lanes, order):
                times[name].note(lane, steps)
        for lane in lanes.values():
            lane.finish()
    return dict(times), sorted(absent)


def judge(workload: Workload, seconds: float) -> list[str]:
    """Measure a workload, print its table, and return which targets it misses."""
    with contextlib.redirect_stdout(io.StringIO()):  # the callback's own tables
        times, absent = measure(workload, seconds)
    base = Times(blocks=times[DENSE].blocks + times[AGAIN].blocks)
    with_callback, inside = times[OURS], times[INSIDE]
    spent = inside.isolated
    isolated = inside.fastest / (inside.fastest - sum(spent.values()))
    print(f"\n{workload.name}: {len(inside.blocks)} blocks of each, bar {workload.bar}\n")
    print("| training | ms a step, fastest | fastest tenth | over without | tenth | zeros |")
    print("|---|---|---|---|---|---|")
    for name, its in sorted(times.items(), key=lambda item: [*BASE, *PEERS].index(item[0])):
        print(
            f"| {name} | {1e3 * its.minimum:.3f} | {1e3 * its.fastest:.3f} "
            f"| {its.minimum / base.minimum:.3f} | {its.fastest / base.fastest:.3f} "
            f"| {its.zeros:.3f} |"
        )
    for name in absent:
        print(f"| {name} | not installed | | | | |")
    parts = ", ".join(f"{name} {1e6 * s:.0f}" for name, s in spent.items())
    print(f"\nisolated: {isolated:.4f}; µs a step in {parts}", flush=True)
    ratio = isolated if workload.isolated else with_callback.fastest / base.fastest
    missed = []
    if ratio > workload.bar:
        missed.append(f"{workload.name}: a step costs {ratio:.4f}, the bar is {workload.bar}")
    missed += [
        f"{workload.name}: {name} is cheaper, {times[name].fastest / base.fastest:.3f} "
        f"against {with_callback.fastest / base.fastest:.3f}"
        for name in PEERS
        if name in times and times[name].fastest < with_callback.fastest
    ]
    return missed


class Epoch(Callback):
    """Notes when the epoch began, and when the training ended."""

    start = end = 0.0

    def on_train_epoch_start(self, *args: Any) -> None:
        """Begin."""
        self.start = time.process_time()

    def on_train_end(self, *args: Any) -> None:
        """End, after all other callbacks."""
        self.end = time.process_time()


def judge_monitor(workload: Workload, seconds: float) -> list[str]:
    """Measure an epoch with `SparsityMonitor`, print it, and return whether it misses."""
    stopwatch, epoch, pruning = Stopwatch(), Epoch(), PruningCallback(sparsity=SPARSITY)
    monitor = SparsityMonitor(histograms_every=1)
    stopwatch.hold_to(monitor)
    batches = workload.batches()
    torch.manual_seed(0)
    module = Training(workload.network())
    start = time.perf_counter()
    module.training_step(batches[0], 0).backward()
    steps = min(MONITOR_STEPS, max(10, int(seconds / (time.perf_counter() - start))))
    data = DataLoader([*itertools.islice(itertools.cycle(batches), steps)], batch_size=None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        logger = TensorBoardLogger(folder)
        callbacks = [pruning, monitor, epoch]
        _trainer(callbacks, max_epochs=1, logger=logger).fit(module, data)
    spent = dict(stopwatch.seconds)
    spent["on_train_epoch_end"] /= 5
    share = sum(spent.values()) / (epoch.end - epoch.start - sum(stopwatch.seconds.values()))
    parts = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in spent.items() if s > 1e-5)
    print(
        f"\nSparsityMonitor, {workload.name}, an epoch of {steps} steps with "
        f"{pruning.pruner.updates} updates: {100 * share:.3f} % of the epoch, "
        f"bar {100 * MONITOR_BAR:.0f} %; ms in {parts}",
        flush=True,
    )
    if share <= MONITOR_BAR:
        return []
    return [f"SparsityMonitor costs {100 * share:.2f} % of an epoch"]


class Counted(Callback):
    """Has valgrind count the instructions of steps in the middle, neither start-up nor end."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin to count once the masks are made; stop before the last step."""
        if trainer.global_step in (WARM_UP, WARM_UP + COUNTED_STEPS):
            switch = "on" if trainer.global_step == WARM_UP else "off"
            command = ["callgrind_control", f"--instr={switch}", str(os.getpid())]
            subprocess.run(command, check=True)


def count(name: str) -> float:
    """Return the instructions of a step of LeNet, counted in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts"
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
        script = [sys.executable, __file__, "--counted", name]
        subprocess.run(
            [*valgrind, f"--callgrind-out-file={file}", *script], check=True, capture_output=True
        )
        counts = re.findall(r"^(?:summary|totals): (\d+)", file.read_text(), re.MULTILINE)
        return int(counts[-1]) / COUNTED_STEPS


def run_counted(name: str) -> None:
    """Train LeNet under valgrind."""
    torch.set_num_threads(1)
    workload = WORKLOADS["lenet"]
    module = Training(workload.network())
    callbacks = [Counted(), *BASE[name](module, Stopwatch())]
    trainer = _trainer(callbacks, max_epochs=-1, max_steps=WARM_UP + COUNTED_STEPS + 1)
    trainer.fit(module, Batches(workload.batches()))


def print_instructions() -> None:
    """Count the instructions of a step with and without, and print their ratio."""
    if shutil.which("valgrind") is None:
        print("valgrind is not installed")
        return
    counts = {}
    for name in (DENSE, OURS):
        counts[name] = count(name)
        print(f"{name}: {counts[name] / 1e6:.3f} million instructions a step", flush=True)
    print(f"instructions of a step of LeNet over without: {counts[OURS] / counts[DENSE]:.4f}")


def main() -> None:
    """Measure all, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*WORKLOADS]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=230, help="for all workloads together")
    parser.add_argument("--callgrind", action="store_true", help="count instructions instead")
    parser.add_argument("--counted", choices=[*BASE], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.counted:
        run_counted(arguments.counted)
        return
    print(machine(*(package for package, _ in PEERS.values())))
    if arguments.callgrind:
        print_instructions()
        return
    missed = []
    for name in arguments.workloads:
        workload = WORKLOADS[name]
        missed += judge(workload, workload.share * arguments.seconds)
        if name == "resnet":
            missed += judge_monitor(workload, MONITOR_SHARE * arguments.seconds)
    print("", "\n".join(missed) or "every bar is met", sep="\n")
    sys.exit(int(bool(missed)))


def _shuffled(named: Mapping[str, Any], order: random.Random) -> list[tuple[str, Any]]:
    return order.sample([*named.items()], len(named))


@contextlib.contextmanager
def _noting_absence(name: str, absent: set[str]) -> Iterator[None]:
    try:
        yield
    except ImportError:
        absent.add(name)


def _trainer(callbacks: list[Callback], *, logger: Any = False, **limits: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **limits,
    )


if __name__ == "__main__":
    main()
