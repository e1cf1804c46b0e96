"""New statistics for the batch normalizations of a pruned model, from training batches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.models.undisturbed import keep_generators, keep_modes, keep_tensors
from lightning_prune.post_training.calibration import (
    describe_shortage,
    hold_weights,
    quiet,
    similar_trainer,
)


def find_statistics(model: nn.Module) -> list[_NormBase]:
    """Return the normalizations that keep a running mean and variance."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    ]


def reestimate_statistics(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    batches: int,
    train_mode: bool,
) -> None:
    """Give each batch normalization the mean statistics of training batches.

    Pruning shifts the inputs of a normalization, and the running statistics of the dense model no
    longer fit: Li et al., "EagleEye" (2020), https://arxiv.org/abs/2007.02491. Only running means,
    running variances and their counts change. Each call sees the same batches.

    Args:
        trainer: Gives device and precision; one process.
        model: The pruned model.
        datamodule: The source of training batches; by default the model.
        batches: Number of training batches, at most one epoch.
        train_mode: Whether all modules are in train mode during the batches. By default only the
            normalizations are, so that they see the inputs that they see in eval mode.

    Raises:
        ValueError: If an epoch has fewer batches.
    """
    norms = find_statistics(model)
    try:
        with keep_generators(), keep_modes(model), quiet(".*"):
            with keep_tensors(model, parameters=False), _averaging(norms):
                model.train(train_mode)
                for norm in norms:
                    norm.train()
                fitting = similar_trainer(trainer, _FirstBatches(batches))
                fitting.fit(model, datamodule=datamodule)
                found = [_copy_buffers(norm) for norm in norms]
            for norm, buffers in zip(norms, found, strict=True):
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)
    finally:
        model.zero_grad()
        model.trainer = trainer
        if datamodule is not None:
            datamodule.trainer = trainer


def _copy_buffers(norm: _NormBase) -> Mapping[str, Tensor]:
    return {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}


@contextmanager
def _averaging(norms: list[_NormBase]) -> Iterator[None]:
    """Begin the statistics anew, and let each batch count equally, inside the block."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


class _FirstBatches(Callback):
    """Ends a fit after the first batches, in which no optimizer changes a weight."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the optimizers by those that change nothing."""
        hold_weights(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch, and stop after the last."""
        self.seen += 1
        trainer.should_stop = self.seen >= self.batches

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse fewer batches than requested."""
        if self.seen < self.batches:
            raise ValueError(describe_shortage(self.batches, self.seen))
