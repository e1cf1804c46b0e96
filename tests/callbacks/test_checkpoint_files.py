"""Which files a SparsityCheckpoint writes, and what is resumed from them."""

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch import nn

from tests.callbacks.best_models import ZEROS, Checked, best, epochs, works_with, zeros


@works_with("`save_last`: `last.ckpt` is there from the first save on, and resumes")
@pytest.mark.parametrize("save_last", [True, "link"])
def test_the_last_is_written_whether_sparse_or_not(save_last, fit, make_model, tmp_path):
    last, seen = tmp_path / "best" / "last.ckpt", []

    def look(trainer, module):
        if trainer.current_epoch:
            state = torch.load(last, weights_only=True)
            seen.append((state["epoch"], zeros(last)))

    def stop(trainer, module):
        if trainer.current_epoch == 2:
            raise KeyError("on purpose")

    whole, second = make_model(), make_model(seed=1)
    kwargs = {"save_last": save_last}
    look_at = LambdaCallback(on_train_epoch_start=look)
    fit(best(dirpath=tmp_path / "best", **kwargs), look_at, model=whole)
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3, 4]
    assert seen[0][1] < seen[2][1] < seen[3][1] == ZEROS
    assert torch.load(last, weights_only=True)["epoch"] == 5
    assert epochs(last.parent) == [4]
    assert torch.load(next(last.parent.glob("epoch=4*")), weights_only=True)["epoch"] == 4

    with pytest.raises(KeyError):
        fit(best(dirpath=tmp_path / "cut", **kwargs), LambdaCallback(on_train_epoch_start=stop))
    cut = {"ckpt_path": tmp_path / "cut" / "last.ckpt"}
    fit(best(dirpath=tmp_path / "cut", **kwargs), model=second, fit_kwargs=cut)
    assert epochs(tmp_path / "cut") == [4]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


@pytest.mark.filterwarnings("ignore:training stopped", "ignore:SparsityCheckpoint has considered")
def test_a_linked_last_never_overwrites_the_best_that_it_links_to(fit, tmp_path):
    first = best(dirpath=tmp_path, save_last="link", enable_version_counter=False)
    fit(first, max_epochs=5)
    assert (tmp_path / "last.ckpt").is_symlink()
    again = best(dirpath=tmp_path, save_last="link", enable_version_counter=False)
    fit(again, LambdaCallback(on_train_epoch_start=lambda t, _: setattr(t, "should_stop", True)))
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert torch.load(first.best_model_path, weights_only=True)["epoch"] == 4


@works_with("`save_on_exception` saves any model")
def test_an_exception_saves_a_dense_model_for_resuming(fit, tmp_path):
    def fail(trainer, module):
        if trainer.global_step == 10:
            raise KeyError("on purpose")

    # At the very step of a save that was left out, too.
    sparse = best(dirpath=tmp_path, save_on_exception=True, monitor=None, every_n_train_steps=10)
    with pytest.raises(KeyError):
        fit(sparse, LambdaCallback(on_validation_start=fail))
    (saved,) = tmp_path.glob("*.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 10


@works_with("a resumed run keeps the best models that it had")
def test_resuming_keeps_the_best_models(fit, tmp_path):
    first = best(save_top_k=2, save_last=True, dirpath=tmp_path)
    fit(first)
    resumed = best(save_top_k=2, save_last=True, dirpath=tmp_path)
    fit(resumed, max_epochs=8, fit_kwargs={"ckpt_path": tmp_path / "last.ckpt"})
    assert resumed.best_k_models == first.best_k_models
    assert resumed.best_model_path == first.best_model_path
    assert epochs(tmp_path) == [4, 5]


@works_with("two `SparsityCheckpoint`s with different sparsities, and a plain `ModelCheckpoint`")
def test_each_of_several_is_resumed_by_its_own(fit, tmp_path):
    def make():
        return [
            best(dirpath=tmp_path / "final"),
            best(dirpath=tmp_path / "half", sparsity=0.4),
            ModelCheckpoint(tmp_path / "plain", monitor="score", mode="max", save_last=True),
        ]

    first, resumed = make(), make()
    assert len({callback.state_key for callback in first}) == 3
    fit(*first)
    last = torch.load(tmp_path / "plain" / "last.ckpt", weights_only=True)
    assert {callback.state_key for callback in first} <= set(last["callbacks"])
    folders = [epochs(tmp_path / name) for name in ("final", "half", "plain")]
    assert folders[0] == [4]
    assert folders[2] == [0]
    assert 0 < folders[1][0] < 3
    trainer = fit(*first[:2])
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    fit(*resumed[:2], max_epochs=7, fit_kwargs={"ckpt_path": tmp_path / "end.ckpt"})
    for one, other in zip(first[:2], resumed[:2], strict=True):
        assert other.best_model_path == one.best_model_path != ""


@works_with('`trainer.test(ckpt_path="best")` takes the sparse one')
def test_the_trainer_tests_the_sparse_best(fit, make_model, loader, tmp_path):
    model, sparse = Checked(), best(dirpath=tmp_path)
    trainer = fit(sparse, model=model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    trainer.test(model, loader, ckpt_path="best", verbose=False)
    assert epochs(tmp_path) == [4]
    assert sum(int((m.weight == 0).sum()) for m in model.net if isinstance(m, nn.Linear)) == ZEROS
