"""Models whose metric falls at a known sparsity, and runs under a tolerance."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from lightning_prune import PruningCallback, Tolerance
from tests.callbacks.rounds import Normalised
from tests.callbacks.runs import Run, fit, frozen

WITHIN = Tolerance(monitor="quality", tolerance=0.1, patience=1, halvings=2)
# Of 640 weights; rounds at 0.5, 0.75, 0.875, and the step halves twice between two of them.
FINAL = 1 - 0.5**3


class Fragile(Normalised):
    """Logs a quality near 0.9 up to a sparsity, and of 0.5 beyond; also momentum and buffers."""

    def __init__(self, limit: float, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.limit = limit

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        weights = torch.cat([self.net[0].weight.flatten(), self.net[3].weight.flatten()])
        sparsity = (weights == 0).double().mean()
        detail = torch.tanh(weights.mean()) / 100  # of two models, which is better
        self.log("quality", detail + (0.9 if sparsity <= self.limit + 1e-3 else 0.5))


class Validated(Callback):
    """Keeps what each validation has seen, and the masks at each step."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning = pruning
        self.models: list[tuple[float, float, Any]] = []  # sparsity, quality, tensors
        self.sparsities: list[float] = []
        self.masks: list[dict[str, Tensor]] = []

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            quality = float(trainer.callback_metrics["quality"])
            tensors = frozen(dict(pl_module.state_dict()))
            self.models.append((self.pruning.sparsity, quality, tensors))

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.sparsities.append(self.pruning.sparsity)
        self.masks.append({name: mask.clone() for name, mask in self.pruning.masks.items()})


def fit_within(
    folder: Any,
    *callbacks: Callback,
    tolerance: Tolerance = WITHIN,
    model: LightningModule | None = None,
    limit: float = 0.8,
    recipe: Any = None,
    **options: Any,
) -> tuple[PruningCallback, Validated, Run]:
    """Train under a tolerance until the model at the limit is found, or to the planned end."""
    pruning = PruningCallback(sparsity=FINAL, tolerance=tolerance, **(recipe or {}))
    validated = Validated(pruning)
    torch.manual_seed(0)
    run = fit(
        validated,
        *callbacks,
        pruning=pruning,
        model=model or Fragile(limit),
        validate=True,
        **{"max_epochs": 12, "default_root_dir": folder, **options},
    )
    return pruning, validated, run
