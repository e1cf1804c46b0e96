"""The weights of a checkpoint in the config's model, also with the shapes of a shrunk model."""

from pathlib import Path

from lightning_prune.callbacks.namespace import LightningModule
from lightning_prune.deploy.checkpoints import read_checkpoint, read_lightning_checkpoint
from lightning_prune.deploy.files import check_output_file


def adopt_shapes(model: LightningModule, ckpt_path: str | Path) -> bool:
    """Give a model the shapes of a shrunk checkpoint, and return whether it was shrunk."""
    checkpoint = read_checkpoint(ckpt_path)
    if "shrunk_attributes" not in checkpoint:
        return False
    from lightning_prune.channels.adoption import adopt

    model.configure_model()
    adopt(model, checkpoint)
    return True


def choose_output(ckpt_path: str, output: str | None, ending: str) -> Path:
    """Return the checkpoint to write: by default beside another, with an ending in the name.

    Raises:
        ValueError: If the other is no checkpoint of Lightning, or the output is the other or cannot
            be written.
    """
    read_lightning_checkpoint(ckpt_path)
    source = Path(ckpt_path)
    beside = source.with_name(f"{source.stem}-{ending}{source.suffix}")
    return check_output_file(output or beside, ckpt_path=source)


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
