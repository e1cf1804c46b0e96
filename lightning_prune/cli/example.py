"""What a model's ``forward`` is called with, where the model does not say it."""

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lightning_prune.callbacks.first_call import FirstCall, missing_example
from lightning_prune.post_training.calibration import quiet, validate


def example_of_validation(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    samples: int,
) -> Any:
    """Return a model's ``example_input_array``, or what validation first calls it with.

    Args:
        trainer: Validates one batch.
        model: Left as it was.
        datamodule: Where the batch comes from; by default from the model.
        samples: How many samples of the batch to take.

    Raises:
        ValueError: If validation does not call ``forward``.
    """
    if model.example_input_array is not None:
        return model.example_input_array
    call = FirstCall(model, samples)
    limit, callbacks = trainer.limit_val_batches, trainer.callbacks  # type: ignore[attr-defined]
    trainer.limit_val_batches = 1
    trainer.callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]  # type: ignore[attr-defined]
    try:
        with quiet(".*"):
            validate(trainer, model, datamodule)
    finally:
        trainer.limit_val_batches, trainer.callbacks = limit, callbacks  # type: ignore[attr-defined]
        call.stop()
    if call.example is None:
        raise ValueError(missing_example(model))
    return call.example
