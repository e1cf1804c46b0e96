"""A teacher beside pruning, averaging, precisions and replicas, stopped and resumed."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.data import DataLoader, DistributedSampler, Subset

from lightning_prune import DistillationCallback, PruningCallback
from tests.callbacks.replicas import Net, assert_equal, loader as shared_loader, make_trainer
from tests.callbacks.runs import STEPS, Save, fit, frozen
from tests.callbacks.teaching import by_hand, close, make, teach_by

SECTION = "Distillation"

# -- beside others ------------------------------------------------


@pytest.mark.works_with(
    SECTION, "`PruningCallback` and `EMAWeightAveraging`, in any order: exact masks"
)
@pytest.mark.parametrize("average", [False, True])
def test_masks_are_exact_and_the_order_of_callbacks_does_not_matter(average, make_trainer, loader):
    ends = []
    for turn in (1, -1):
        pruning, distillation = PruningCallback(sparsity=0.75), DistillationCallback(output="net")
        teach_by(distillation, make(seed=7))
        callbacks = [pruning, distillation, *([EMAWeightAveraging(decay=0.9)] * average)][::turn]
        model = make()
        make_trainer(*callbacks).fit(model, loader, loader)
        parameters = dict(model.named_parameters())
        assert pruning.sparsity == 0.75
        for name, mask in pruning.masks.items():
            assert torch.equal(parameters[name] != 0, mask)
        ends.append(frozen(dict(model.state_dict())))
    assert ends[0] == ends[1]


@pytest.mark.works_with(SECTION, "`bf16-mixed`")
def test_bf16_mixed_is_taught_alike(teacher, make_trainer, loader):
    model = make()
    trainer = make_trainer(DistillationCallback(teacher, output="net"), precision="bf16-mixed")
    trainer.fit(model, loader)
    expected, losses = by_hand(loader, temperature=4.0)
    assert trainer.callback_metrics["distillation_loss"].dtype == torch.float32
    assert trainer.callback_metrics["distillation_loss"].item() == pytest.approx(losses[-1], 0.1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=0.1, atol=0.05)


@pytest.mark.works_with(SECTION, "a gradient scaler")
def test_scaled_gradients_are_those_of_both_losses(teacher, make_trainer, loader):
    """Under a scale of 2**10 in single precision all is as without it."""

    class Single(MixedPrecision):
        def forward_context(self):
            return torch.autocast("cpu", enabled=False)

    model = make()
    plugin = Single("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    make_trainer(DistillationCallback(teacher, output="net"), plugins=[plugin]).fit(model, loader)
    close(model, by_hand(loader, temperature=4.0)[0])


@pytest.mark.works_with(SECTION, "`bf16-true`")
def test_bf16_true_teaches_in_its_precision(teacher, make_trainer, loader):
    model = make()
    distillation, called = DistillationCallback(teacher, output="net"), set()
    with register_module_forward_hook(lambda module, *_: called.add(module)):
        make_trainer(distillation, precision="bf16-true").fit(model, loader)
    layers = [module for module in called if isinstance(module, nn.Linear)]
    assert len(layers) == 2 * 2  # of the student and of the teacher
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert model.net[0].weight.isfinite().all()


def fit_replica(folder, teacher):
    model = Net()
    distillation = DistillationCallback(teacher, output="net", features=["net.0"])
    data = shared_loader().dataset
    shared = DataLoader(data, batch_size=8, sampler=DistributedSampler(data, shuffle=False))
    make_trainer(folder, DDPStrategy(), distillation).fit(model, shared)
    return {name: value.detach() for name, value in model.state_dict().items()}


@pytest.mark.works_with(SECTION, "DDP: equal to one process with the batches of both processes")
@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_replicas_are_taught_alike_and_as_one_process_with_their_batches(two, tmp_path):
    torch.save({n: v + 0.1 for n, v in Net().state_dict().items()}, tmp_path / "teacher.pt")
    one, other = two(fit_replica, tmp_path, tmp_path / "teacher.pt")
    assert_equal(one, other)
    model = Net()
    distillation = DistillationCallback(tmp_path / "teacher.pt", output="net", features=["net.0"])
    halves = torch.arange(64).reshape(-1, 2).T  # what each process is given
    order = torch.cat([half.reshape(4, 8) for half in halves], dim=1).flatten().tolist()
    batches = DataLoader(Subset(shared_loader().dataset, order), batch_size=16)
    make_trainer(tmp_path, "auto", distillation).fit(model, batches)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, one[name], rtol=1e-3, atol=1e-4)


# -- stop and resume ------------------------------------------------


@pytest.mark.works_with(SECTION, "stop and resume after any step, snapshot or file: bit for bit")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["snapshot", "file"])
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(kind, teacher, tmp_path):
    def run(*callbacks, **options):
        distillation = DistillationCallback(
            teacher if kind == "file" else None, output="net", features=["net.1"]
        )
        return fit(distillation, *callbacks, pruning=PruningCallback(), **options)

    whole, save = run(model=make()), Save(tmp_path)
    assert not whole.differences(run(save, model=make()))
    for step in save.saved:
        # Another start, which a new snapshot would teach.
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1, model=make(seed=3))
        assert not whole.after(step).differences(resumed), step
    assert len(save.saved) == STEPS


def test_a_snapshot_is_of_the_weights_when_training_starts(make_trainer, loader, tmp_path):
    model, distillation = make(), DistillationCallback(output="net")
    make_trainer(PruningCallback(), distillation).fit(model, loader)
    first = distillation.state_dict()["teacher"]
    assert frozen(dict(first)) == frozen(dict(make().state_dict()))
    trained = frozen(dict(model.state_dict()))
    make_trainer(distillation).fit(model, loader)
    assert frozen(dict(distillation.state_dict()["teacher"])) == trained
    trainer = make_trainer()
    trainer.fit(make(seed=5), loader)
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    dense = torch.load(tmp_path / "dense.ckpt", weights_only=True)["state_dict"]
    trainer = make_trainer(distillation, max_epochs=3)
    trainer.fit(make(), loader, ckpt_path=tmp_path / "dense.ckpt", weights_only=True)
    assert frozen(dict(distillation.state_dict()["teacher"])) == frozen(dict(dense))


def test_a_checkpoint_of_lightning_teaches(teacher, make_trainer, loader, tmp_path):
    torch.save({"state_dict": torch.load(teacher), "epoch": 3}, tmp_path / "teacher.ckpt")
    distillation, model = DistillationCallback(str(tmp_path / "teacher.ckpt"), output="net"), make()
    make_trainer(distillation).fit(model, loader)
    close(model, by_hand(loader, temperature=4.0)[0])


def test_a_file_is_not_saved_but_another_one_in_its_place_is_refused(teacher, tmp_path):
    save = Save(tmp_path)
    distillation = DistillationCallback(teacher, output="net")
    fit(distillation, save, model=make())
    assert distillation.state_dict().keys() == {"path", "digest"}
    path = tmp_path / f"{save.saved[2]}.ckpt"
    with pytest.raises(ValueError, match=r"need the teacher of the run .* got teacher=None; write"):
        fit(DistillationCallback(output="net"), resume=path)
    elsewhere = tmp_path / "elsewhere.pt"
    torch.save(make(seed=8).state_dict(), elsewhere)
    fit(DistillationCallback(elsewhere, output="net"), resume=path)
    torch.save(make(seed=8).state_dict(), teacher)
    with pytest.raises(ValueError, match="need the teacher that the run was started with, got ano"):
        fit(DistillationCallback(teacher, output="net"), resume=path)


def test_resuming_a_finished_run_keeps_the_teacher(tmp_path):
    save, distillation = Save(tmp_path), DistillationCallback(output="net")
    fit(distillation, save, model=make())
    again = DistillationCallback(output="net")
    fit(again, resume=tmp_path / f"{save.saved[-1]}.ckpt")
    assert frozen(again.state_dict()) == frozen(distillation.state_dict())


@pytest.mark.filterwarnings("ignore:.*max_epochs=0")
def test_a_fit_with_nothing_to_train_keeps_the_teacher(make_trainer, loader):
    distillation = DistillationCallback(output="net")
    make_trainer(distillation, max_epochs=1).fit(make(), loader)
    before = frozen(distillation.state_dict())
    make_trainer(distillation, max_epochs=0).fit(make(seed=2), loader)
    assert frozen(distillation.state_dict()) == before
