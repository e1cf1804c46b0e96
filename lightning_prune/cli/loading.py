"""The weights of a checkpoint in the config's model, also with the shapes of a shrunk model."""

from pathlib import Path

from lightning_prune.callbacks.namespace import LightningModule
from lightning_prune.deploy.checkpoints import read_checkpoint, read_lightning_checkpoint
from lightning_prune.deploy.files import check_output_file

ENDINGS = {"prune": "pruned", "reestimate": "reestimated", "shrink": "shrunk"}
"""The ending in the name of the checkpoint that a command writes."""


def adopt_shapes(model: LightningModule, ckpt_path: str | Path) -> bool:
    """Give a model the shapes of a shrunk checkpoint, and return whether it was shrunk."""
    checkpoint = read_checkpoint(ckpt_path)
    if "shrunk_attributes" not in checkpoint:
        return False
    from lightning_prune.channels.adoption import adopt

    model.configure_model()
    adopt(model, checkpoint)
    return True


def name_output(ckpt_path: str, command: str) -> Path:
    """Return the name of the checkpoint that a command writes beside another checkpoint."""
    source = Path(ckpt_path)
    return source.with_name(f"{source.stem}-{ENDINGS[command]}{source.suffix}")


def choose_output(ckpt_path: str, output: str | None, command: str) -> Path:
    """Return the checkpoint to write: by default beside another, with an ending in the name.

    Raises:
        ValueError: If the other is no checkpoint of Lightning, or the output is the other or cannot
            be written.
    """
    read_lightning_checkpoint(ckpt_path)
    return check_output_file(output or name_output(ckpt_path, command), ckpt_path=ckpt_path)


def load_weights(model: LightningModule, ckpt_path: str) -> bool:
    """Load the weights of a checkpoint into a model, and return whether it was shrunk."""
    model.configure_model()
    is_shrunk = adopt_shapes(model, ckpt_path)
    checkpoint = read_lightning_checkpoint(ckpt_path)
    model.on_load_checkpoint(checkpoint)
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"need a checkpoint of the model, got {ckpt_path=}; {reason}") from error
    return is_shrunk
