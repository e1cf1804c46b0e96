from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import PolynomialSchedule, PruningCallback

PRUNABLE = 16 * 32 + 32 * 4


class Classifier(LightningModule):
    """Two layers on four classes that are easy to tell apart."""

    def __init__(self, optimizer: str = "adamw") -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.optimizer = optimizer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        if self.optimizer == "adagrad":
            return torch.optim.Adagrad(self.parameters(), lr=0.05)
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


def zeros(model: nn.Module) -> int:
    return sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Linear))


class Record(Callback):
    """Keeps the sparsity after each batch and checks that what is pruned is zero."""

    def __init__(self, pruning: Any) -> None:
        self.pruning, self.sparsities = pruning, []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        parameters = dict(pl_module.named_parameters())
        for name, mask in self.pruning.masks.items():
            assert not parameters[name].detach()[~mask].any()
        self.sparsities.append(self.pruning.sparsity)


@pytest.fixture
def make_model() -> Callable[..., Classifier]:
    def make(seed: int = 0, **kwargs: Any) -> Classifier:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Classifier(**kwargs)

    return make


@pytest.fixture
def teacher(make_model: Callable[..., Classifier], tmp_path: Path) -> Path:
    """A checkpoint of other weights than those that training begins with."""
    path = tmp_path / "teacher.pt"
    torch.save(make_model(seed=7).state_dict(), path)
    return path


@pytest.fixture
def loader() -> DataLoader:
    """Ten batches of eight."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 4
    x = torch.randn(80, 16, generator=generator) + 3 * nn.functional.one_hot(y, 16)
    return DataLoader(TensorDataset(x, y), batch_size=8)


@pytest.fixture
def make_trainer(tmp_path) -> Callable[..., Trainer]:
    def make(*callbacks: Any, **kwargs: Any) -> Trainer:
        defaults = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "log_every_n_steps": 1,
        }
        return Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})

    return make


# Best while dense; of those from epoch 3 on, which are at the final sparsity, epoch 4 is.
SCORES = [0.99, 0.98, 0.97, 0.5, 0.7, 0.6, 0.4, 0.3]


@pytest.fixture(name="fit")
def fit_six_epochs(
    make_model: Callable[..., Classifier], make_trainer: Callable[..., Trainer], loader: DataLoader
) -> Callable[..., Trainer]:
    """Train six epochs; only the last three are at the final sparsity."""
    scores = LambdaCallback(
        on_validation_epoch_end=lambda trainer, module: module.log(
            "score", SCORES[trainer.current_epoch]
        )
    )

    def run(
        *callbacks: Any,
        pruning: Any = None,
        fit_kwargs: Any = None,
        model: Any = None,
        **kwargs: Any,
    ) -> Trainer:
        pruning = pruning or PruningCallback(
            sparsity=0.75, schedule=PolynomialSchedule(begin=0, end=3, unit="epoch", power=1)
        )
        defaults = {"max_epochs": 6, "enable_checkpointing": True}
        trainer = make_trainer(pruning, scores, *callbacks, **{**defaults, **kwargs})
        trainer.fit(model or make_model(), loader, loader, **(fit_kwargs or {}))
        return trainer

    return run
