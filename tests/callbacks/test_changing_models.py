"""Layers and optimizers that come, go, freeze and thaw while training."""

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, LambdaCallback
from torch import nn

from lightning_prune import OneShotSchedule, PruningCallback, UniformAllocation
from tests.callbacks.conftest import PRUNABLE, Classifier, Record, zeros
from tests.callbacks.models import Gan, at_epoch
from tests.hooks import hooks

SECTION = "Loops"


@pytest.mark.works_with(SECTION, "layers added or replaced after training began")
def test_a_layer_that_is_added_while_training_is_due_at_once(make_model, make_trainer, loader):
    model = make_model()

    def grow(trainer, module):
        module.net.append(nn.Linear(4, 8))
        trainer.optimizers[0].add_param_group({"params": module.net[3].parameters()})

    schedule = OneShotSchedule(end=0.25)
    pruning = PruningCallback(sparsity=0.75, schedule=schedule, allocation=UniformAllocation())
    record = Record(pruning)
    make_trainer(pruning, record, at_epoch(1, grow)).fit(model, loader)
    assert int((model.net[3].weight == 0).sum()) == 24
    assert zeros(model) == round(PRUNABLE * 0.75) + 24
    assert record.sparsities == [0] * 5 + [0.75] * 15


@pytest.mark.works_with(SECTION, "layers added or replaced after training began")
def test_a_layer_that_is_replaced_is_pruned_anew(make_model, make_trainer, loader):
    model = make_model()

    def replace(trainer, module):
        module.net[2] = nn.Linear(32, 4)
        trainer.optimizers[0].add_param_group({"params": module.net[2].parameters()})

    pruning = PruningCallback(
        sparsity=0.75, schedule=OneShotSchedule(end=0.25), allocation=UniformAllocation()
    )
    make_trainer(pruning, Record(pruning), at_epoch(1, replace)).fit(model, loader)
    assert torch.equal(model.net[2].weight != 0, pruning.masks["net.2.weight"])
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.works_with(SECTION, "optimizers replaced or added after training began")
@pytest.mark.parametrize("end", [0.25, 0.75])
def test_a_replaced_optimizer_goes_on_counting(end, make_model, make_trainer, loader):
    model = make_model()
    old = []

    def replace(trainer, module):
        old.extend(trainer.optimizers)
        trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)]

    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=end))
    record = Record(pruning)
    trainer = make_trainer(pruning, record, at_epoch(1, replace))
    trainer.fit(model, loader)
    assert record.sparsities == [0] * int(20 * end) + [0.75] * int(20 * (1 - end))
    assert pruning.pruner.state_dict()["steps"] == [20]
    assert zeros(model) == round(PRUNABLE * 0.75)
    assert not hooks(*old, *trainer.optimizers)


@pytest.mark.works_with(SECTION, "optimizers replaced or added after training began")
def test_an_added_optimizer_prunes_what_it_owns(make_trainer, loader):
    class Growing(Gan):
        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                optimizer.zero_grad()
                (parameter, *_) = optimizer.param_groups[0]["params"]
                self.manual_backward(parameter.square().mean())
                optimizer.step()

        def configure_optimizers(self):
            return super().configure_optimizers()[0]

    def add(trainer, module):
        trainer.optimizers = [
            *trainer.optimizers,
            torch.optim.SGD(module.discriminator.parameters(), lr=0.1),
        ]

    model, pruning = Growing(), PruningCallback(sparsity=0.75)
    make_trainer(pruning, Record(pruning), at_epoch(1, add)).fit(model, loader)
    assert pruning.pruner.state_dict()["steps"] == [20, 10]
    assert int((model.generator.weight == 0).sum()) == 192
    assert int((model.discriminator.weight == 0).sum()) == 192


@pytest.mark.works_with(SECTION, "optimizers replaced or added after training began")
def test_a_weight_that_changes_hands_is_pruned_by_the_count_of_its_new_owner(make_trainer, loader):
    class Split(Gan):
        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                optimizer.zero_grad()
                self.manual_backward(self.discriminator(self.generator(batch[0])).square().mean())
                optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def split(trainer, module):
        parts = (module.generator, module.discriminator)
        trainer.optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in parts]

    model, curves = Split(), []
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=15, unit="step"))
    look = LambdaCallback(
        on_train_batch_end=lambda *_: curves.append(
            [int((part.weight == 0).sum()) for part in (model.generator, model.discriminator)]
        )
    )
    make_trainer(pruning, look, at_epoch(1, split), max_epochs=3).fit(model, loader)
    assert curves == [[0, 0]] * 15 + [[192, 0]] * 10 + [[192, 192]] * 5


@pytest.mark.works_with(SECTION, "layers that are frozen, or unfrozen by `BaseFinetuning`")
def test_frozen_layers_stay_dense(make_model, make_trainer, loader):
    model = make_model()
    model.net[0].requires_grad_(False)
    pruning = PruningCallback(sparsity=0.75)
    make_trainer(pruning).fit(model, loader)
    assert list(pruning.masks) == ["net.2.weight"]
    assert pruning.pruner.dense["net.0.weight"] == "frozen"


@pytest.mark.works_with(SECTION, "layers that are frozen, or unfrozen by `BaseFinetuning`")
def test_a_frozen_layer_that_a_glob_names_is_pruned(make_model, make_trainer, loader):
    model = make_model()
    model.net[0].requires_grad_(False)
    pruning = PruningCallback(sparsity={"*": 0.75, "net.0": 0.5})
    make_trainer(pruning).fit(model, loader)
    assert list(pruning.masks) == ["net.0.weight", "net.2.weight"]
    assert (model.net[0].weight == 0).float().mean() == 0.5


class Thaw(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


class Backbone(Classifier):
    """The first layer is the backbone; only what is not frozen goes to the optimizer at first."""

    @property
    def backbone(self):
        return self.net[0]

    def configure_optimizers(self):
        return torch.optim.AdamW(filter(lambda p: p.requires_grad, self.parameters()), lr=1e-2)


@pytest.mark.works_with(SECTION, "layers that are frozen, or unfrozen by `BaseFinetuning`")
@pytest.mark.parametrize(
    "thaw", [Thaw, lambda: BackboneFinetuning(1, initial_denom_lr=2.0)], ids=["base", "backbone"]
)
@pytest.mark.parametrize("pruning_first", [True, False])
def test_an_unfrozen_layer_is_due_at_once(thaw, pruning_first, make_trainer, loader):
    model = Backbone()
    pruning = PruningCallback(
        sparsity=0.75, schedule=OneShotSchedule(end=0.25), allocation=UniformAllocation()
    )
    record = Record(pruning)
    before = model.net[0].weight.clone()
    same = []
    look = LambdaCallback(
        on_train_epoch_end=lambda *_: same.append(torch.equal(model.net[0].weight, before))
    )
    callbacks = [pruning, thaw()] if pruning_first else [thaw(), pruning]
    make_trainer(*callbacks, record, look).fit(model, loader)
    assert same == [True, False]
    assert zeros(model) == round(PRUNABLE * 0.75)
    assert record.sparsities == [0] * 5 + [0.75] * 15
