"""Files that are written whole or not at all, and the libraries that write them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory


def need_libraries(*names: str) -> None:
    """Raise ModuleNotFoundError if one of the extra ``[export]`` is missing."""
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"need {name} for files to deploy, got none; pip install 'lightning-prune[export]'"
            )


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; at the end, the file there takes the place of the older one.

    If the block raises, the older file stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        written = Path(folder) / target.name
        yield written
        os.replace(written, target)
