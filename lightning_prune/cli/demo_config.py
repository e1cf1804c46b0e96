"""The config of ``lightning-prune demo``, which the package brings along."""

from importlib.resources import files
from pathlib import Path

NAME = "demo.yaml"


def write_demo_config() -> str:
    """Write the config into the current directory, and return the name of the file.

    Raises:
        FileExistsError: If another file has this name.
    """
    text = (files("lightning_prune.cli") / NAME).read_text(encoding="utf-8")
    path = Path(NAME)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(
            f"need a directory without another {NAME}, got {path.absolute()}; to run this file, "
            f"write: lightning-prune fit --config {NAME}"
        )
    path.write_text(text, encoding="utf-8")
    return NAME
