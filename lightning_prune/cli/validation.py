"""Validations of models that may have none."""

from copy import deepcopy

from lightning_prune.callbacks.namespace import (
    LightningDataModule,
    LightningModule,
    Trainer,
    is_overridden,
)
from lightning_prune.post_training.calibration import validate


def validate_if_possible(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None
) -> dict[str, float]:
    """Return the metrics of a validated copy; no metrics if the model has no validation."""
    if not has_validation(model, datamodule):
        return {}
    return validate(trainer, deepcopy(model), datamodule)


def has_validation(model: LightningModule, datamodule: LightningDataModule | None) -> bool:
    """Whether a model can be validated, with own data or with those of a datamodule."""
    sources = (model, datamodule)
    return is_overridden("validation_step", model) and any(
        source is not None and is_overridden("val_dataloader", source) for source in sources
    )
