"""Smaller checkpoints and sparse files, validated by the user's own validation."""

from copy import deepcopy
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.channels.adoption import shrunk_state
from lightning_prune.channels.shrink import shrink
from lightning_prune.cli.example import find_example
from lightning_prune.cli.formats import RECIPE, find_recipe
from lightning_prune.cli.loading import choose_output, load_weights
from lightning_prune.cli.saying import Say
from lightning_prune.cli.validation import has_validation, validate_if_possible
from lightning_prune.deploy.checkpoints import read_checkpoint, write_checkpoint
from lightning_prune.deploy.compression import file_size
from lightning_prune.deploy.sparse_file import load_sparse, save_sparse
from lightning_prune.post_training.calibration import check_one_process, validate
from lightning_prune.post_training.held_fits import quiet
from lightning_prune.reporting.pruning import change_table

_KEPT_KEYS = (  # the keys of a checkpoint that describe the model, not the training
    "pytorch-lightning_version",
    "hparams_name",
    "hparams_type",
    "hyper_parameters",
    "datamodule_hparams_name",
    "datamodule_hyper_parameters",
)

# Lightning's `load_from_checkpoint` makes the model by a function of this name. It refuses unknown
# names in an error that repeats them; older versions repeat them up to the first dot. Without it,
# the error would only say that shapes differ.
_INSTEAD = {
    "_instantiator": "none: lightning_prune has shrunk this checkpoint; make the model, read the "
    "file by torch, and call adopt(model, checkpoint) of lightning_prune."
}

NOT_VALIDATED = "the model has no validation_step, or nothing has a val_dataloader"


def write_shrunk(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    ckpt_path: str,
    output: str | None,
    say: Say,
) -> None:
    """Remove zero channels and branches, and write a checkpoint without the training state.

    Args:
        trainer: Validates both models.
        model: The model of the config.
        datamodule: The source of batches; by default the model.
        ckpt_path: The checkpoint of the model. The new checkpoint keeps the hyperparameters.
        output: The checkpoint to write; None for a file beside the other.
        say: Called with each line and table for the user.
    """
    check_one_process(trainer, "to shrink")
    target = choose_output(ckpt_path, output, "shrink")
    load_weights(model, ckpt_path)
    before = validate_if_possible(trainer, model, datamodule)
    example = find_example(trainer, model, datamodule, samples=2)
    say("finding which channels go together, and comparing the smaller model with the model")
    smaller = shrink(model, example, progress=shows_progress(trainer))
    dense, left = (sum(p.numel() for p in each.parameters()) for each in (model, smaller))
    if dense == left:
        raise ValueError(
            f"need zero channels that can be removed, got none in ckpt_path='{ckpt_path}'; prune "
            "them in training with pattern: ChannelPattern, or branches with BranchPattern"
        )
    _write_shrunk_checkpoint(smaller, ckpt_path, target)
    say(f"the smaller model has the same outputs; parameters: {dense:,} before, {left:,} after")
    if before:
        after = validate_if_possible(trainer, smaller, datamodule)
        say(change_table(before, after, "shrunk"))
    say(f"written: {target}")


def _write_shrunk_checkpoint(smaller: nn.Module, source: str, output: Path) -> None:
    checkpoint = read_checkpoint(source)
    kept = {key: checkpoint[key] for key in _KEPT_KEYS if key in checkpoint}
    if kept.get("hparams_name", "kwargs") == "kwargs":  # the arguments of the model, by name
        kept["hyper_parameters"] = {**kept.get("hyper_parameters", {}), **_INSTEAD}
    if recipe := find_recipe(checkpoint):
        kept[RECIPE] = recipe
    start = {"epoch": 0, "global_step": 0, "optimizer_states": [], "lr_schedulers": []}
    write_checkpoint(kept | start | {"callbacks": {}} | shrunk_state(smaller), output)


def write_sparse(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    output: Path,
    precision: Literal["fp32", "fp16"],
    say: Say,
) -> None:
    """Write a sparse file, load it back, and validate it if values were rounded.

    The file has the types of training: those of ``bf16-true`` are half as large. So its bytes are
    those of a `BytesBudget` in training.

    Args:
        trainer: Validates copies of the model.
        model: The model, which does not change.
        datamodule: The source of batches; by default the model.
        output: The file to write.
        precision: ``"fp32"`` or ``"fp16"``.
        say: Called with each line and table for the user.
    """
    say("writing the sparse file and loading it back")
    model = trainer.precision_plugin.convert_module(deepcopy(model))  # type: ignore[assignment]
    save_sparse(model, output, dtype=None if precision == "fp32" else torch.float16)
    copy = deepcopy(model)
    copy.load_state_dict(load_sparse(output))
    weights = [tensor for tensor in copy.state_dict().values() if tensor.dim() > 1]
    zeros = sum(int((weight == 0).count_nonzero()) for weight in weights)
    describe_file(say, output, zeros, sum(weight.numel() for weight in weights))
    if precision == "fp32":
        say("the file loads back bit for bit, so it keeps the quality of the model")
    elif not has_validation(model, datamodule):
        say(f"the quality of the file was not measured: {NOT_VALIDATED}")
    else:
        before = validate(trainer, deepcopy(model), datamodule)
        with quiet(".*"):
            after = validate(trainer, copy, datamodule)
        say(change_table(before, after, f"as {output.name}"))


def describe_file(say: Say, path: Path, zeros: int, entries: int) -> None:
    """Say how large a file is, and how many of the weights are zero."""
    size = file_size(path)
    say(f"written: {path}, {size.raw:,} bytes, {size.zstd:,} when compressed (zstd)")
    say(f"zeros: {zeros:,} of {entries:,} weights, sparsity {zeros / max(entries, 1):.4f}")
