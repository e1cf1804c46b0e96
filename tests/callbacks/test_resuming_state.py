"""What the callback adds to a checkpoint."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_prune import PruningCallback, RandomCriterion
from tests.callbacks.runs import BATCHES, SaliencySum, Save, fit


class Wide(LightningModule):
    """A large and many small tensors."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1024, 512), *[nn.Linear(16, 3) for _ in range(30)])

    def training_step(self, batch, batch_idx):
        return sum(p.square().mean() for p in self.parameters())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.works_with(
    "Stop and resume",
    "masks and counters take 1/30 of the weights' bytes and 1 KiB a tensor, at most",
)
def test_masks_and_counters_take_a_thirtieth_of_the_weights_and_a_kibibyte_a_tensor(tmp_path):
    sizes = {}
    for name, criterion in (("none", None), ("masks", RandomCriterion()), ("sums", SaliencySum())):
        pruning = PruningCallback(criterion=criterion) if criterion else None
        model = Wide()
        fit(Save(tmp_path, at={"epoch"}), pruning=pruning, model=model, max_epochs=1)
        sizes[name] = (tmp_path / f"{BATCHES}.ckpt").stat().st_size
    weights = [p for p in model.parameters() if p.ndim == 2]
    in_fp32 = 4 * sum(p.numel() for p in weights)
    assert len(weights) == 31
    assert sizes["masks"] - sizes["none"] <= in_fp32 / 30 + 1024 * len(weights)
    assert sizes["masks"] - sizes["none"] >= in_fp32 / 32
    # An accumulator of a criterion comes on top, here one in fp32.
    assert in_fp32 <= sizes["sums"] - sizes["masks"] <= in_fp32 + 1024 * len(weights)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for pair in value.items() for part in pair for leaf in leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


@pytest.mark.works_with("Stop and resume", "`weights_only=True`")
def test_the_state_is_plain_and_loads_with_weights_only(tmp_path):
    pruning = PruningCallback(criterion=SaliencySum())
    fit(Save(tmp_path), pruning=pruning)
    state = torch.load(tmp_path / "9.ckpt", weights_only=True)["callbacks"]["PruningCallback"]
    assert {type(leaf) for leaf in leaves(state)} <= {Tensor, int, float, str}
    assert set(state["observed"]) == set(pruning.masks)
