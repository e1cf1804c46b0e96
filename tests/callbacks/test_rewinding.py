import io
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune import (
    ExponentialSchedule,
    MultiStepSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    Rewind,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import BATCHES, EPOCHS, STEPS, SaliencySum, Save, dataset, fit, frozen
from tests.callbacks.test_loops import Gan

ROUNDS = (4, 8, 12)
in_steps = MultiStepSchedule(milestones=ROUNDS, unit="step")


class Normalised(Classifier):
    """With buffers, momentum and a learning rate that falls at each step."""

    def __init__(self, optimizer: str = "adamw", *, plateau: bool = False) -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)
        )
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
    """Keeps what is there at the start of each batch, seen by callbacks behind ours, and at its end."""

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


# -- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adagrad"])
@pytest.mark.parametrize("to", [0, 3])
def test_weights_and_buffers_are_bit_equal_to_those_of_step_k_under_the_mask(to, optimizer):
    masks = []

    class Masks(Callback):
        def on_train_batch_start(self, trainer, *_):
            masks.append({name: mask.clone() for name, mask in pruning.masks.items()})

    pruning = PruningCallback(sparsity=0.75, schedule=in_steps, rewind=Rewind(to=to))
    watch = Watch()
    fit(watch, Masks(), pruning=pruning, model=Normalised(optimizer))
    for number, step in enumerate(ROUNDS, start=1):
        assert sum(int(mask.sum()) for mask in masks[step].values()) == 640 - number * 160
        assert frozen(watch.starts[step]["tensors"]) == under(
            masks[step], watch.starts[to]["tensors"]
        )
        assert frozen(watch.ends[step]["tensors"]) != frozen(watch.starts[step]["tensors"])
