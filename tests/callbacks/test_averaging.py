import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LambdaCallback,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

from lightning_prune import OneShotSchedule, PruningCallback
from lightning_prune.models.torch_floors import TorchFloor
from tests.callbacks.conftest import PRUNABLE, Record, zeros

HOLDS_NO_CODE = TorchFloor.SWA_CHECKPOINT.is_met
every_average = pytest.mark.parametrize(
    "make_averaging",
    [
        lambda: EMAWeightAveraging(decay=0.9),
        WeightAveraging,
        lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
    ],
    ids=["ema", "average", "swa"],
)
either_order = pytest.mark.parametrize("pruning_first", [True, False])
SECTION = "Averaging"


def ordered(first, pruning, averaging):
    return (pruning, averaging) if first else (averaging, pruning)


@pytest.mark.works_with(
    SECTION, "`EMAWeightAveraging`, `WeightAveraging` and SWA, before or after the pruning callback"
)
@either_order
@every_average
def test_the_averaged_model_has_exactly_the_live_masks(
    make_averaging, pruning_first, make_model, make_trainer, loader
):
    model, pruning = make_model(), PruningCallback(sparsity=0.75)
    callbacks = ordered(pruning_first, pruning, make_averaging())
    make_trainer(*callbacks, max_epochs=4).fit(model, loader, loader)
    parameters = dict(model.named_parameters())
    for name, mask in pruning.masks.items():
        assert torch.equal(parameters[name] != 0, mask)
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.works_with(SECTION, "the averaged model that is validated is masked")
@either_order
@every_average
def test_what_is_validated_has_the_zeros_of_the_masks(
    make_averaging, pruning_first, make_model, make_trainer, loader
):
    pruning = PruningCallback(sparsity=0.75)
    validated, due = [], []

    def look(trainer, module, *_):
        if not trainer.sanity_checking:
            validated.append(zeros(module))
            due.append(round(PRUNABLE * pruning.sparsity))

    callbacks = ordered(pruning_first, pruning, make_averaging())
    make_trainer(
        *callbacks,
        LambdaCallback(on_validation_batch_end=look),
        max_epochs=4,
        val_check_interval=3,
        limit_val_batches=1,
    ).fit(make_model(), loader, loader)
    assert validated == due
    assert sorted(set(due))[0] == 0
    assert len(set(due)) > 5


class SaveFirst(Callback):
    """Saves at each batch, ahead of all other callbacks."""

    def __init__(self, pruning, folder):
        self.pruning, self.folder, self.due = pruning, folder, []

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{len(self.due)}.ckpt")
        self.due.append(round(PRUNABLE * self.pruning.sparsity))


def saved_zeros(path):
    state = torch.load(path, weights_only=HOLDS_NO_CODE)
    models = [state["state_dict"], state.get("current_model_state", state["state_dict"])]
    for callback in state["callbacks"].values():
        models += [callback["average_model_state"]] if "average_model_state" in callback else []
    return [sum(int((m[f"net.{i}.weight"] == 0).sum()) for i in (0, 2)) for m in models]


@pytest.mark.works_with(SECTION, "the averaged and the live model in every checkpoint are masked")
@either_order
@every_average
def test_what_is_saved_at_any_batch_has_the_zeros_of_the_masks(
    make_averaging, pruning_first, make_model, make_trainer, loader, tmp_path
):
    pruning = PruningCallback(sparsity=0.75)
    save = SaveFirst(pruning, tmp_path)
    callbacks = ordered(pruning_first, pruning, make_averaging())
    make_trainer(save, *callbacks).fit(make_model(), loader)
    assert len(set(save.due)) > 5
    for index, due in enumerate(save.due):
        assert set(saved_zeros(tmp_path / f"{index}.ckpt")) == {due}


@pytest.mark.works_with(SECTION, "the averaged and the live model in every checkpoint are masked")
def test_model_checkpoints_of_an_average_are_masked(make_model, make_trainer, loader, tmp_path):
    pruning = PruningCallback(sparsity=0.75)
    record = Record(pruning)
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
    make_trainer(
        saving, record, EMAWeightAveraging(decay=0.9), pruning, enable_checkpointing=True
    ).fit(make_model(), loader)
    paths = list(tmp_path.glob("*.ckpt"))
    assert len(paths) == 6
    for path in paths:
        step = int(path.stem.removeprefix("step="))
        assert set(saved_zeros(path)) == {round(PRUNABLE * record.sparsities[step - 1])}


@pytest.mark.works_with(SECTION, "stop and resume: bit for bit the run without a stop")
@either_order
@every_average
def test_an_averaged_run_resumes_bit_for_bit(
    make_averaging, pruning_first, make_model, make_trainer, loader, tmp_path
):
    def run(model, *more, **kwargs):
        pruning = PruningCallback(sparsity=0.75)
        callbacks = ordered(pruning_first, pruning, make_averaging())
        make_trainer(*callbacks, *more, max_epochs=4).fit(model, loader, loader, **kwargs)
        return model.state_dict()

    def save(trainer, module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole = run(make_model(), LambdaCallback(on_train_epoch_end=save))
    path = tmp_path / "middle.ckpt"
    resumed = run(make_model(seed=1), ckpt_path=path, weights_only=HOLDS_NO_CODE)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.works_with(SECTION, "the extra epoch of SWA prunes nothing more, and does not count")
def test_swa_extra_epoch_does_not_count(make_model, make_trainer, loader):
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=0.5))
    record = Record(pruning)
    model = make_model()
    model.net.insert(1, nn.BatchNorm1d(32))  # for whose statistics SWA adds an epoch
    swa = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=4)
    make_trainer(pruning, record, swa, max_epochs=4).fit(model, loader)
    assert record.sparsities == [0] * 20 + [0.75] * 30
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.works_with(
    SECTION, "an average that lacks a layer added later: the error names the layer", refused=True
)
def test_a_layer_that_an_average_lacks_is_named(make_model, make_trainer, loader):
    model = make_model()

    def grow(trainer, module):
        if trainer.current_epoch == 1:
            module.net.append(nn.Linear(4, 4))
            trainer.optimizers[0].add_param_group({"params": module.net[3].parameters()})

    trainer = make_trainer(
        PruningCallback(), WeightAveraging(), LambdaCallback(on_train_epoch_start=grow)
    )
    with pytest.raises(ValueError, match=r"copy with the same parameters, got one without 'net\.3"):
        trainer.fit(model, loader)
