"""Checkpoints: read without executing them, and written whole or not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import is_zipfile

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_prune.deploy.distributed_checkpoints import (
    INDEX,
    ForeignObjectError,
    read_whole_weights,
)
from lightning_prune.deploy.files import replace_file
from lightning_prune.models.torch_floors import TorchFloor

_OTHER_STATES = "meta.pt"  # in the folder of a distributed checkpoint of Lightning
_LARGEST_LIST = 3  # foreign classes that an error names
_AVERAGING = repr("torch.optim.swa_utils.SWALR")


def read_checkpoint(path: str | Path, *, argument: str = "ckpt_path") -> dict[str, Any]:
    """Return the content of a file that holds tensors, numbers, strings and containers only.

    Nothing in the file is executed. The tensors stay in the file until they are used. So they need
    no memory of their own, and a file with compressed tensors does not load. Of the folder of a
    distributed checkpoint, the whole weights are read into memory, without the optimizers.

    Args:
        path: The file, or the folder of a distributed checkpoint.
        argument: The name of the path in errors.

    Raises:
        ValueError: If there is no such file, or the file is no checkpoint or holds other objects.
    """
    file, given = Path(path), f"{argument}='{path}'"
    if not file.exists():
        raise ValueError(f"need an existing checkpoint, got {given}")
    is_distributed = (file / INDEX).is_file()
    if file.is_dir() and not is_distributed:
        raise ValueError(f"need the file of a checkpoint, got the folder {given}")
    file = file / _OTHER_STATES if is_distributed else file
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
        if is_distributed:
            content = {**content, "state_dict": read_whole_weights(file.parent)}
    except Exception as error:  # a file can hold any bytes
        reason = _explain(file, error)
        # The message of torch would follow as the cause, and it advises to execute the file.
        raise ValueError(f"need a checkpoint that can be loaded, got {given}: {reason}") from None
    if not _has_names(content):
        raise ValueError(f"need a checkpoint, got {given} with a {type(content).__name__} in it")
    return dict(content)


def read_lightning_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint of Lightning, as `read_checkpoint` does.

    Raises:
        ValueError: If the file is not a checkpoint of Lightning.
    """
    checkpoint = read_checkpoint(path)
    if not _has_names(checkpoint.get("state_dict")):
        raise ValueError(
            f"need a checkpoint of Lightning, got ckpt_path='{path}' without a state_dict"
        )
    if not _has_names(checkpoint.get("hyper_parameters", {})):
        raise ValueError(
            f"need a checkpoint of Lightning, got ckpt_path='{path}' without names of "
            "hyper_parameters"
        )
    return checkpoint


@contextmanager
def find_whole_file(path: str | Path) -> Iterator[str]:
    """Return the file of a checkpoint of Lightning inside the block, for Lightning to load.

    Of a distributed checkpoint this is a temporary file with the whole weights.
    """
    if not Path(path).is_dir():
        yield str(path)
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / Path(path).name
        write_checkpoint(read_lightning_checkpoint(path), file)
        yield str(file)


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint by ``torch.save``; if anything fails, an older file stays."""
    content = BytesIO()  # torch itself names neither the file nor a full disk in errors
    torch.save(dict(checkpoint), content)
    with replace_file(path) as file:
        file.write_bytes(content.getbuffer())


def _has_names(content: object) -> bool:
    return isinstance(content, Mapping) and all(isinstance(name, str) for name in content)


def _explain(file: Path, error: Exception) -> str:
    """Return why a file does not load, without the advice of torch."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, ForeignObjectError):
        return str(error)
    if file.stat().st_size == 0:
        return "the file is empty"
    if names := _find_foreign_classes(file):
        if _AVERAGING in names and not TorchFloor.SWA_CHECKPOINT.is_met:
            return TorchFloor.SWA_CHECKPOINT.refusal
        listed = ", ".join(names[:_LARGEST_LIST]) + (", ..." if names[_LARGEST_LIST:] else "")
        return (
            f"it holds objects of {listed}; keep them out of the hyperparameters and states, or "
            "allow a class that you trust by torch.serialization.add_safe_globals"
        )
    return "it is cut off, damaged or of another format"


def _find_foreign_classes(file: Path) -> list[str]:
    """Return the names of classes and functions that are not loaded; none if unreadable."""
    try:
        return [repr(name) for name in sorted(get_unsafe_globals_in_checkpoint(file))]
    except Exception:  # a file can hold any bytes
        return []
