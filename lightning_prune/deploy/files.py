"""Files that are written whole or not at all, and how large they are."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

_LEVEL = 10  # 19 takes ten times as long to save a few bytes in a hundred


@dataclass(frozen=True, kw_only=True)
class FileSize:
    """How large a file is.

    Args:
        raw: On disk, in bytes.
        zstd: Compressed by Zstandard at level 10, in bytes.
    """

    raw: int
    zstd: int


def file_size(path: str | Path) -> FileSize:
    """Return how large a file is, as it is and compressed.

    Raises:
        ModuleNotFoundError: If zstandard is not installed.
    """
    need_libraries("zstandard")
    import zstandard

    with open(path, "rb") as file, open(os.devnull, "wb") as nothing:
        raw, compressed = zstandard.ZstdCompressor(level=_LEVEL).copy_stream(file, nothing)
    return FileSize(raw=raw, zstd=compressed)


def need_libraries(*names: str) -> None:
    """Raise ModuleNotFoundError if one of the extra ``[export]`` is missing."""
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"need {name} for files to deploy, got none; pip install 'lightning-prune[export]'"
            )


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield where to write; what is there at the end takes the path's place.

    If an error is raised meanwhile, what was at the path before stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        written = Path(folder) / target.name
        yield written
        os.replace(written, target)
