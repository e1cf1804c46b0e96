"""Files that are written whole or not at all, and the libraries that write them."""

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

_PREFIX = ".lightning_prune-"  # of the temporary folder beside a file


def need_libraries(*names: str, extra: str = "export") -> None:
    """Raise ModuleNotFoundError if a library of an extra is missing."""
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"need {name} for files to deploy, got none; pip install 'lightning-prune[{extra}]'"
            )


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; at the end, the file there takes the place of the older one.

    If the block raises, the older file stays, and no temporary file is left. A link is replaced by
    a file; the file that the link names stays. New folders are made at the end.

    Raises:
        OSError: If the file cannot be written; the error names the file.
    """
    target = Path(path)
    try:
        with TemporaryDirectory(dir=_find_folder(target), prefix=_PREFIX) as folder:
            written = Path(folder) / target.name
            yield written
            with open(written, "rb+") as file:  # the content is on the disk before the name
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, written)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(written, target)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


@contextmanager
def replace_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield a path to write to for each file; no file is replaced before all are written."""
    with ExitStack() as stack:
        yield [stack.enter_context(replace_file(path)) for path in paths]


def check_output_file(
    path: str | Path, /, *, argument: str = "output", **sources: str | Path | None
) -> Path:
    """Return the path of a file to write; raise an error if it cannot be written.

    Call this function before the work. It makes the file, and new folders, in a temporary folder.

    Args:
        path: The path to write to.
        argument: The name of the path in errors.
        **sources: The files that are read, by the names of their arguments. The path must not be a
            source, or a link to a source.

    Raises:
        ValueError: If the path is a folder, a device, a write-protected file or a source, or if the
            system refuses to write there.
    """
    target, given = Path(path), f"{argument}='{path}'"
    try:
        mode = target.stat().st_mode if target.exists() else None
        if mode is None or stat.S_ISREG(mode):
            _rehearse(target)
    except OSError as error:
        raise ValueError(
            f"need a file that can be written, got {given}: {error.strerror}"
        ) from error
    if mode is None:
        return target
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device"
        raise ValueError(f"need the name of a file to write, got the {kind} {given}")
    if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"need a file that may be replaced, got the write-protected {given}")
    for name, source in sources.items():
        if source is not None and target.samefile(source):
            raise ValueError(f"need an output other than {name}, got {given}")
    return target


def _rehearse(target: Path) -> None:
    """Make a file of the same name, in the same new folders, in a temporary folder."""
    existing = _find_folder(target)
    with TemporaryDirectory(dir=existing, prefix=_PREFIX) as folder:
        rehearsed = Path(folder) / target.absolute().relative_to(existing)
        rehearsed.parent.mkdir(parents=True, exist_ok=True)
        rehearsed.touch()


def _find_folder(target: Path) -> Path:
    """Return the nearest folder above a file that exists, without links and dots resolved."""
    return next(folder for folder in target.absolute().parents if folder.exists())
