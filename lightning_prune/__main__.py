"""``python -m lightning_prune``: the command ``lightning-prune``."""

from lightning_prune.cli import main

main()
