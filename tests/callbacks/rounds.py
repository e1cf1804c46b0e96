"""Runs that go back at each round of pruning, and what is seen of them."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_prune import MultiStepSchedule, PruningCallback, Rewind
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import STEPS, fit, frozen

ROUNDS = (4, 8, 12)
in_steps = MultiStepSchedule(milestones=ROUNDS, unit="step")


class Normalised(Classifier):
    """With buffers, momentum and a learning rate that falls at each step."""

    def __init__(self, optimizer: str = "adamw", *, plateau: bool = False) -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
        self.plateau = plateau

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        if self.plateau:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return [optimizer], [{"scheduler": scheduler, "monitor": "loss", "interval": "epoch"}]
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def moment(trainer: Any, model: LightningModule) -> dict[str, Any]:
    """Everything that a rewinding touches, at this moment."""
    (optimizer,) = trainer.optimizers
    state = optimizer.state_dict()
    return {
        "tensors": {name: t.detach().clone() for name, t in model.state_dict().items()},
        "gathered": frozen(state["state"]),
        "groups": frozen(state["param_groups"]),
        "schedulers": [frozen(one.scheduler.state_dict()) for one in trainer.lr_scheduler_configs],
    }


class Watch(Callback):
    """Keeps what is there at the start of each batch, behind our callback, and at its end."""

    def __init__(self) -> None:
        self.starts: dict[int, dict[str, Any]] = {}
        self.ends: dict[int, dict[str, Any]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.starts.setdefault(trainer.global_step, moment(trainer, pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.ends[trainer.global_step] = moment(trainer, pl_module)


def watched(
    rewind: Rewind | None, *callbacks: Callback, model: Any = None, schedule: Any = in_steps, **more
) -> tuple[PruningCallback, Watch, Any]:
    pruning = PruningCallback(sparsity=0.75, schedule=schedule, rewind=rewind)
    watch = Watch()
    torch.manual_seed(0)
    run = fit(watch, *callbacks, pruning=pruning, model=model or Normalised(), **more)
    return pruning, watch, run


def under(masks: dict[str, Tensor], tensors: dict[str, Tensor]) -> Any:
    """The tensors with +0.0 wherever these are pruned."""
    pruned = {n: t.masked_fill(~masks[n], 0.0) if n in masks else t for n, t in tensors.items()}
    return frozen(pruned)
