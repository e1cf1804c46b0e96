"""The ``lightning-prune`` command: LightningCLI for any model and data by import path."""

import os
import sys

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI


def main() -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` on what the config names."""
    sys.path.insert(0, os.getcwd())  # a console script cannot import the current directory's code
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
    )
