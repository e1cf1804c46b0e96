"""The ways to train that `step_cost.py` compares: without pruning, with ours, and with peers."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from torch.nn.utils import prune

from benchmarks.parts.step_cost.training import FIRST_EPOCH, Stopwatch, Training
from lightning_prune import OneShotSchedule, PruningCallback, StraightThrough

SPARSITY = 0.9
DENSE, AGAIN, OURS, INSIDE = "without", "without, again", "PruningCallback", "timed inside"
RENEWED = "straight-through"

Equip = Callable[[Training, Stopwatch], list[Callback]]


def train_dense(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Train without pruning."""
    return []


def train_dense_and_time(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Train without pruning, and time the calls that Lightning makes with and without pruning."""
    return [TimeInside(stopwatch)]


def prune_once(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Prune in the first step, and then no more."""
    schedule = OneShotSchedule(end=0, unit="step")
    return [PruningCallback(sparsity=SPARSITY, schedule=schedule)]


def choose_each_step(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Choose the masks anew after each step, while pruned weights go on learning."""
    schedule = OneShotSchedule(end=0, unit="step")
    learning = StraightThrough()
    return [PruningCallback(sparsity=SPARSITY, schedule=schedule, straight_through=learning)]


class TimeInside(Callback):
    """Times our hooks of the optimizers, and the moments in which Lightning collects logged values.

    The hooks are wrapped where they hang: an optimizer of another class would count as one that may
    move pruned weights.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time the hooks, and the two calls that the loop makes after each batch."""
        for optimizer in trainer.optimizers:
            for hooks in optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks:
                for key, hook in hooks.items():
                    hooks[key] = self.stopwatch.wrap("optimizer hook", hook)
        connector = trainer._logger_connector
        for name in ("on_batch_end", "update_train_step_metrics"):
            call = getattr(connector, name)
            setattr(connector, name, self.stopwatch.wrap("collecting of logs", call))


def prune_once_and_time(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Prune in the first step, and time every call that pruning needs."""
    callbacks = prune_once(module, stopwatch)
    stopwatch.time_hooks(callbacks[0])
    return [*callbacks, TimeInside(stopwatch)]


def use_model_pruning(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Let Lightning prune at the end of the first epoch."""
    pruned = [(layer, "weight") for layer in module.layers]
    once = {"amount": SPARSITY, "apply_pruning": lambda epoch: epoch == 0}
    return [ModelPruning("l1_unstructured", parameters_to_prune=pruned, **once)]


def use_torch_prune(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Reparametrize by `torch.nn.utils.prune` before training."""
    pruned = [(layer, "weight") for layer in module.layers]
    prune.global_unstructured(pruned, prune.L1Unstructured, amount=SPARSITY)
    return []


def use_torch_ao(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Reparametrize by `torch.nn.utils.parametrize`, as the sparsifiers of torch.ao do."""
    from torch.ao.pruning import WeightNormSparsifier

    sparsifier = WeightNormSparsifier(
        sparsity_level=SPARSITY, sparse_block_shape=(1, 1), zeros_per_block=1
    )
    names = {id(layer): name for name, layer in module.named_modules()}
    config = [{"tensor_fqn": f"{names[id(layer)]}.weight"} for layer in module.layers]
    sparsifier.prepare(module, config)
    sparsifier.step()
    return []


def use_torchao_pat(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Wrap the optimizer, and reach the phase in which the zeros are frozen."""
    from torchao.prototype.pat.optim import PruneOptimizer

    weights = [layer.weight for layer in module.layers]
    known = {id(weight) for weight in weights}
    kind = {"prox_type": "MinSparsityConstraint", "group_type": "KElementGrouper", "k": 1}
    pruned = {"params": weights, "min_sparsity": SPARSITY, **kind}
    others = {"params": [p for p in module.parameters() if id(p) not in known]}
    module.make_optimizer = lambda: PruneOptimizer(
        torch.optim.AdamW([pruned, others], fused=True), healing_start_step=FIRST_EPOCH
    )
    return []


def use_coremltools(module: Training, stopwatch: Stopwatch) -> list[Callback]:
    """Reparametrize, and step the pruner after each batch."""
    from coremltools.optimize.torch.pruning import MagnitudePruner, MagnitudePrunerConfig

    config = {"global_config": {"target_sparsity": SPARSITY}}
    pruner = MagnitudePruner(module.network, MagnitudePrunerConfig.from_dict(config))
    pruner.prepare(inplace=True)

    class PrunerStep(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            pruner.step()

    return [PrunerStep()]


BASE: Mapping[str, Equip] = {
    DENSE: train_dense,
    AGAIN: train_dense_and_time,
    OURS: prune_once,
    INSIDE: prune_once_and_time,
    RENEWED: choose_each_step,
}
PEERS: Mapping[str, tuple[str, Equip]] = {  # with the package that each of them needs
    "ModelPruning": ("lightning", use_model_pruning),
    "torch.nn.utils.prune": ("torch", use_torch_prune),
    "torch.ao WeightNormSparsifier": ("torch", use_torch_ao),
    "torchao PAT": ("torchao", use_torchao_pat),
    "coremltools MagnitudePruner": ("coremltools", use_coremltools),
}
