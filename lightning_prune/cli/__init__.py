"""The ``lightning-prune`` command. Importing this package imports neither torch nor Lightning."""

from lightning_prune.cli.entry import main

__all__ = ["main"]
