"""An example of a model's input, taken from validation where the model has none."""

from typing import Any

from lightning_prune.callbacks.namespace import (
    LightningDataModule,
    LightningModule,
    Trainer,
    is_lightning,
)
from lightning_prune.models.calls import refuse_missing_example
from lightning_prune.models.examples import CallRecorder
from lightning_prune.post_training.calibration import validate
from lightning_prune.post_training.held_fits import quiet


def find_example(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    samples: int,
) -> Any:
    """Return a model's ``example_input_array``, or else the first call of its validation.

    Args:
        trainer: Validates a batch.
        model: Left as it was.
        datamodule: Gives the batch; by default the model does.
        samples: The number of samples to take from the batch.

    Raises:
        ValueError: If validation does not call ``forward``.
    """
    if model.example_input_array is not None:
        return model.example_input_array
    limit, callbacks = trainer.limit_val_batches, trainer.callbacks  # type: ignore[union-attr]
    trainer.limit_val_batches = 1
    trainer.callbacks = [c for c in callbacks if not is_lightning(c, "ProgressBar")]  # type: ignore[union-attr]
    try:
        with quiet(".*"), CallRecorder(model, limit=1, samples=samples) as recorder:
            validate(trainer, model, datamodule)
    finally:
        trainer.limit_val_batches, trainer.callbacks = limit, callbacks  # type: ignore[union-attr]
    if not recorder.calls:
        refuse_missing_example(model, "no call of forward in validation_step")
    return recorder.calls[0]
