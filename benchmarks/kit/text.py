"""Text: the source files of Python's standard library, as windows of bytes."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from benchmarks.kit.data import Splits

TURN = 8  # of 8 files in a row, a file is for validation, and a file is for the test


def read_library_text(positions: int, folder: Path | None = None) -> Splits:
    """Return windows ``(n, positions)`` of source files, each with the bytes that follow.

    Args:
        positions: Bytes that a window shows.
        folder: The folder with the files; None for the standard library of the running Python. A
            file is in a single split. Folders below it are left out.
    """
    files = sorted((folder or Path(sysconfig.get_path("stdlib"))).glob("*.py"))
    validation, test = files[TURN // 2 :: TURN], files[TURN - 1 :: TURN]
    train = [file for file in files if file not in {*validation, *test}]
    return Splits(*(cut_windows(part, positions) for part in (train, validation, test)))


def cut_windows(files: Sequence[Path], positions: int) -> TensorDataset:
    """Return the windows of the files, end to end."""
    content = bytearray(b"".join(file.read_bytes() for file in files))
    windows = torch.frombuffer(content, dtype=torch.uint8).unfold(0, positions + 1, positions)
    return TensorDataset(windows[:, :-1].long(), windows[:, 1:].long())
