"""Checkpoints of several processes: a folder with a file for each process, and an index."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX = ".metadata"
"""The file in the folder that says which weights are in which file."""

_ROOMS = ("torch.distributed.checkpoint.metadata", "pathlib")
_NAMES = {
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
}


class _Index(pickle.Unpickler):
    """Reads an index, and nothing that could execute code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that indexes consist of.

        Raises:
            pickle.UnpicklingError: If it is another class or function.
        """
        is_known = module in _ROOMS or (module, name) in _NAMES
        if not is_known and not (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            raise pickle.UnpicklingError(f"it holds objects of '{module}.{name}'")
        return super().find_class(module, name)


def read_whole_weights(folder: Path) -> dict[str, Tensor]:
    """Return the whole weights by name; statistics of optimizers are not read.

    Args:
        folder: The folder of a checkpoint that Lightning has written with FSDP2.

    Raises:
        Exception: Of any kind, if the folder is damaged or holds other objects.
    """
    from torch.distributed.checkpoint import CheckpointException, FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    with (folder / INDEX).open("rb") as file:
        index = _Index(file).load()
    weights = {}
    for key, stored in index.state_dict_metadata.items():
        group, name = index.planner_data[key][:2]
        if group == "state_dict" and isinstance(stored, TensorStorageMetadata):
            weights[name] = torch.empty(stored.size, dtype=stored.properties.dtype, device="cpu")
    with warnings.catch_warnings():  # torch warns that a single process reads
        warnings.simplefilter("ignore", UserWarning)
        try:
            load({"state_dict": weights}, storage_reader=FileSystemReader(folder), no_dist=True)
        except CheckpointException as error:  # a BaseException
            raise ValueError(
                "need all files of the checkpoint, got a folder without some"
            ) from error
    return weights
