"""Runs that can be stopped, resumed and compared bit for bit."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Criterion, PruningCallback
from lightning_prune.recipe.tensor import PrunedTensor
from tests.callbacks.conftest import Classifier

BATCHES, EPOCHS = 5, 3
STEPS = BATCHES * EPOCHS


def dataset() -> TensorDataset:
    """Five batches of eight."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(8 * BATCHES) % 4
    x = torch.randn(len(y), 16, generator=generator) + 3 * nn.functional.one_hot(y, 16)
    return TensorDataset(x, y)


class ResumableLoader(DataLoader):
    """Goes on behind the last batch it gave, which is all that an exact resume needs."""

    given = 0

    def __iter__(self) -> Iterator[Any]:
        first = self.given % len(self)
        for index, batch in enumerate(super().__iter__()):
            if index >= first:
                self.given = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


@dataclass(frozen=True, kw_only=True)
class SaliencySum(Criterion):
    """Keeps what has mattered so far, summed up in place."""

    def observe(self, tensor: PrunedTensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = (tensor.parameter.detach() * tensor.parameter.grad).abs()
        return {"sum": state["sum"].add_(seen)} if state else {"sum": seen}

    def score(self, tensor: PrunedTensor, state: dict[str, Tensor]) -> Tensor:
        return state["sum"]


class Curve(Logger):
    """Keeps what is logged, by step."""

    name, version = "curve", 0

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[int, dict[str, float]] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        ours = {name: value for name, value in metrics.items() if name != "epoch"}
        self.points.setdefault(step, {}).update(ours)


class Save(Checkpoint):
    """Writes ``<step>.ckpt`` after steps, at the end of epochs or at the end of validations.

    Where Lightning 2.6 is resumed from the last batch of an epoch, and that run is resumed again,
    it trains too long, pruning or not. So ``"step"`` leaves these to ``"epoch"``, and both is the
    default.
    """

    def __init__(self, folder: Path, *, at: Collection[str] = ("step", "epoch")) -> None:
        self.folder, self.at, self.saved = folder, at, []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        stepped = trainer.global_step > self.before  # else gradients accumulate
        within = not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if stepped and ("last batch" in self.at or (within and "step" in self.at)):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if "epoch" in self.at:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if "validation" in self.at and not trainer.sanity_checking:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        self.saved.append(trainer.global_step)
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt", weights_only=False)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run came to: everything in bytes, and its curve."""

    model: LightningModule
    pruning: PruningCallback | None
    trainer: Trainer
    weights: dict[str, bytes]
    optimizers: list[Any]
    state: dict[str, Any]
    curve: dict[int, dict[str, float]]

    def after(self, step: int) -> "Run":
        """The same with the curve from that step on."""
        later = {at: logged for at, logged in self.curve.items() if at >= step}
        return replace(self, curve=later)

    def differences(self, other: "Run") -> list[str]:
        """Names of the parts that are not the same bits."""
        parts = ("weights", "optimizers", "state", "curve")
        return [part for part in parts if getattr(self, part) != getattr(other, part)]


def fit(
    *callbacks: Callback,
    pruning: PruningCallback | None = None,
    model: LightningModule | None = None,
    loader: Any = None,
    resume: Path | None = None,
    seed: int = 0,
    validate: bool = False,
    **options: Any,
) -> Run:
    """Train a small model to the end, and return what it came to."""
    torch.manual_seed(seed)
    model = model or Classifier()
    loader = loader or ResumableLoader(dataset(), batch_size=8)
    curve = Curve()
    defaults = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "logger": curve,
        "enable_checkpointing": any(isinstance(one, Checkpoint) for one in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    own = [pruning] if pruning else []
    trainer = Trainer(callbacks=[*own, *callbacks], **{**defaults, **options})
    held_out = DataLoader(dataset(), batch_size=20) if validate else None
    trainer.fit(model, loader, held_out, ckpt_path=resume, weights_only=True if resume else None)
    return Run(
        model=model,
        pruning=pruning,
        trainer=trainer,
        weights=frozen(dict(model.state_dict())),
        optimizers=[frozen(optimizer.state_dict()) for optimizer in trainer.optimizers],
        state=frozen(pruning.state_dict()) if pruning else {},
        curve=curve.points,
    )


def frozen(value: Any) -> Any:
    """A copy in which tensors are bytes, so that -0.0 is not 0.0 and NaN is NaN."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, dict):
        return {key: frozen(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(inner) for inner in value]
    return value
