"""Checkpoints of several processes: a folder with a file for each process, and an index."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX = ".metadata"
"""The file in the folder that says which weights are in which file."""

_NAMES = {
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex"),
        *("StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}
"""The names that an index consists of, by module. A name with a dot would lead anywhere."""


class ForeignObjectError(pickle.UnpicklingError):
    """An index holds an object that could execute code."""


class _Index(pickle.Unpickler):
    """Reads an index, and nothing that could execute code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that indexes consist of.

        Raises:
            ForeignObjectError: If it is another class or function.
        """
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _NAMES.get(module, ()):
            raise ForeignObjectError(f"it holds objects of '{module}.{name}'")
        return super().find_class(module, name)


def read_whole_weights(folder: Path) -> dict[str, Tensor]:
    """Return the whole weights by name; statistics of optimizers are not read.

    Args:
        folder: The folder of a checkpoint that Lightning has written with FSDP2.

    Raises:
        Exception: Of any kind, if the folder is damaged or holds other objects.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

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
