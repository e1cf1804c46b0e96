"""Steps that the training step makes, and parameter groups."""

import pytest
import torch

from lightning_prune import OneShotSchedule, PolynomialSchedule, PruningCallback
from tests.callbacks.conftest import PRUNABLE, Classifier, Record, zeros
from tests.callbacks.models import Gan

SECTION = "Loops"


@pytest.mark.works_with(SECTION, "manual optimization of two networks, a target for each")
@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 24}])
def test_two_optimizers_prune_to_a_target_each(limits, make_trainer, loader):
    model = Gan()
    pruning = PruningCallback(
        sparsity={"generator": 0.5, "discriminator": 0.75},
        schedule=PolynomialSchedule(begin=0, end=1),
    )
    make_trainer(pruning, Record(pruning), **limits).fit(model, loader)
    assert int((model.generator.weight == 0).sum()) == 128
    assert int((model.discriminator.weight == 0).sum()) == 192


class Manual(Classifier):
    """Steps at every second batch, clipping before."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, 0.1, "norm")
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.works_with(SECTION, "manual optimization that accumulates and clips")
def test_manual_optimization_counts_its_own_steps(make_trainer, loader):
    schedule = OneShotSchedule(end=4, unit="step")
    pruning, model = PruningCallback(sparsity=0.75, schedule=schedule), Manual()
    record = Record(pruning)
    make_trainer(pruning, record).fit(model, loader)
    assert pruning.pruner.state_dict()["steps"] == [10]
    assert record.sparsities == [0] * 9 + [0.75] * 11
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.works_with(
    SECTION,
    "manual optimization that steps the raw optimizer: the error names the call to use",
    refused=True,
)
def test_a_raw_step_says_what_to_step(make_trainer, loader):
    class Raw(Manual):
        def optimizers(self):
            return super().optimizers(use_pl_optimizer=False)

    with pytest.raises(RuntimeError, match=r"step what self\.optimizers\(\) returns"):
        make_trainer(PruningCallback()).fit(Raw(), loader)


@pytest.mark.works_with(SECTION, "several parameter groups")
def test_parameter_groups_share_one_budget(make_trainer, loader):
    class Grouped(Classifier):
        def configure_optimizers(self):
            groups = [
                {"params": self.net[0].parameters(), "lr": 1e-3},
                {"params": self.net[2].parameters(), "weight_decay": 0.1},
            ]
            return torch.optim.AdamW(groups, lr=1e-2)

    model, pruning = Grouped(), PruningCallback(sparsity=0.75)
    make_trainer(pruning, Record(pruning)).fit(model, loader)
    assert zeros(model) == round(PRUNABLE * 0.75)
