"""Sizes of files and of weights when compressed.

Two compressors remain. zstd is what downloads and packages use, so that files to deploy are
measured by it; it comes with the extra ``[export]``. A report must work without any extra, and
gives every reader the same number: zlib comes with Python.
"""

import os
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.files import need_libraries

_ZSTD_LEVEL = 10  # level 19 takes ten times as long to save a few bytes in a hundred


@dataclass(frozen=True, kw_only=True)
class FileSize:
    """The size of a file.

    Args:
        raw: Bytes on disk.
        zstd: Bytes when compressed by Zstandard at level 10.
    """

    raw: int
    zstd: int


@check_arguments
def file_size(path: str | Path) -> FileSize:
    """Return the size of a file, as it is and compressed.

    Raises:
        ModuleNotFoundError: If zstandard is not installed.
    """
    with open(path, "rb") as file:
        raw, compressed = _compress(file)
    return FileSize(raw=raw, zstd=compressed)


def count_zstd_bytes(content: bytes) -> int:
    """Return the number of bytes through Zstandard, as `file_size` compresses a file.

    Raises:
        ModuleNotFoundError: If zstandard is not installed.
    """
    return _compress(BytesIO(content))[1]


def _compress(source: BinaryIO) -> tuple[int, int]:
    """Return the number of bytes that are read, and of those that are left."""
    need_libraries("zstandard")
    import zstandard

    with open(os.devnull, "wb") as nothing:
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).copy_stream(source, nothing)


def count_compressed_bytes(content: bytes) -> int:
    """Return the number of bytes through zlib at its default level; 0 for no content."""
    return len(zlib.compress(content)) if content else 0
