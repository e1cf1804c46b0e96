"""The ``lightning-prune`` command."""

from lightning_prune.cli.command import main

__all__ = ["main"]
