"""Checkpoints of the best sparse model, and what is in them."""

import re
from pathlib import Path

import pytest
import torch

from lightning_prune import SparsityCheckpoint
from tests.callbacks.conftest import Classifier

SECTION = "The right best checkpoint"
ZEROS = round(0.75 * (16 * 32 + 32 * 4))


def works_with(case, **kwargs):
    return pytest.mark.works_with(SECTION, case, **kwargs)


def zeros(path) -> int:
    state = torch.load(path, weights_only=True)["state_dict"]
    return sum(int((value == 0).sum()) for name, value in state.items() if name.endswith("weight"))


def epochs(folder) -> list[int]:
    found = (re.match(r"epoch=(\d+)", path.name) for path in Path(folder).glob("*.ckpt"))
    return sorted(int(match[1]) for match in found if match)


def best(**kwargs) -> SparsityCheckpoint:
    return SparsityCheckpoint(**{"monitor": "score", "mode": "max", **kwargs})


class Checked(Classifier):
    """Can be tested."""

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)


class Level(Checked):
    """Is never better than it was."""

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", 0.5)
