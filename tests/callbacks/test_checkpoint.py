import re
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from torch import nn

from lightning_prune import (
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    SparsityCheckpoint,
)
from lightning_prune.cli.command import PruneArgumentParser, PruneCLI
from tests.callbacks.conftest import Classifier

SECTION = "The right best checkpoint"
PAGE = Path(__file__).parents[2] / "docs" / "works_with.md"
# Best while dense; of those from epoch 3 on, which are at the final sparsity, epoch 4 is.
SCORES = [0.99, 0.98, 0.97, 0.5, 0.7, 0.6, 0.4, 0.3]
ZEROS = round(0.75 * (16 * 32 + 32 * 4))


def works_with(case, **kwargs):
    return pytest.mark.works_with(SECTION, case, **kwargs)


def scores(values=SCORES):
    """Validation's scores, epoch by epoch."""
    return LambdaCallback(
        on_validation_epoch_end=lambda trainer, module: module.log(
            "score", values[trainer.current_epoch]
        )
    )


@pytest.fixture
def fit(make_model, make_trainer, loader, tmp_path):
    """Train six epochs, of which the first three are not at the final sparsity."""

    def run(*callbacks, pruning=None, fit_kwargs=None, model=None, **kwargs):
        pruning = pruning or PruningCallback(
            sparsity=0.75, schedule=PolynomialSchedule(begin=0, end=3, unit="epoch", power=1)
        )
        trainer = make_trainer(
            pruning,
            scores(),
            *callbacks,
            **{"max_epochs": 6, "enable_checkpointing": True, **kwargs},
        )
        trainer.fit(model or make_model(), loader, loader, **(fit_kwargs or {}))
        return trainer

    return run


def zeros(path) -> int:
    state = torch.load(path, weights_only=True)["state_dict"]
    return sum(int((value == 0).sum()) for name, value in state.items() if name.endswith("weight"))


def epochs(folder) -> list[int]:
    found = (re.match(r"epoch=(\d+)", path.name) for path in Path(folder).glob("*.ckpt"))
    return sorted(int(match[1]) for match in found if match)


def best(**kwargs) -> SparsityCheckpoint:
    return SparsityCheckpoint(**{"monitor": "score", "mode": "max", **kwargs})


@works_with("the best model is the best of those at the final sparsity")
def test_the_best_is_the_best_of_the_sparse_ones(fit, tmp_path):
    plain = ModelCheckpoint(tmp_path / "plain", monitor="score", mode="max")
    sparse = best(dirpath=tmp_path / "sparse")
    fit(plain, sparse)
    assert epochs(tmp_path / "plain") == [0]
    assert epochs(tmp_path / "sparse") == [4]
    assert zeros(plain.best_model_path) < zeros(sparse.best_model_path) == ZEROS
    assert float(sparse.best_model_score) == pytest.approx(0.7)


@works_with("`save_top_k`: 2, all, none; without `monitor` the newest")
@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"save_top_k": 2}, [4, 5]),
        ({"save_top_k": -1}, [3, 4, 5]),
        ({"save_top_k": 0}, []),
        ({"monitor": None}, [5]),
        ({"monitor": None, "save_top_k": -1}, [3, 4, 5]),
        ({"mode": "min"}, [3]),
    ],
)
def test_only_sparse_models_are_among_the_best_k(arguments, kept, fit, tmp_path):
    fit(best(dirpath=tmp_path / "best", **arguments))
    assert epochs(tmp_path / "best") == kept


@works_with("a lower sparsity than the final one, named")
def test_a_named_sparsity_lets_the_earlier_ones_in(fit, tmp_path):
    sparse = best(sparsity=0.4, save_top_k=-1, dirpath=tmp_path)
    fit(sparse)
    kept = [zeros(path) for path in sparse.best_k_models]
    assert 0.4 / 0.75 * ZEROS <= min(kept) < max(kept) == ZEROS
    assert epochs(tmp_path)[-1] == 5
    assert 0 not in epochs(tmp_path)


@works_with("a target that rounding leaves a hair short")
@pytest.mark.parametrize("named", [None, 0.333])
def test_a_target_reached_but_for_rounding_counts(named, fit, tmp_path):
    pruning = PruningCallback(sparsity=0.333, schedule=OneShotSchedule(end=3, unit="epoch"))
    fit(best(sparsity=named, save_top_k=-1, dirpath=tmp_path), pruning=pruning)
    assert pruning.sparsity < 0.333
    assert epochs(tmp_path) == [3, 4, 5]


TRIGGERS = {
    "every_n_epochs": {"every_n_epochs": 2},
    "every_n_train_steps": {"every_n_train_steps": 2},
    "train_time_interval": {"train_time_interval": timedelta(0)},
    "save_on_train_epoch_end": {"save_on_train_epoch_end": True},
    "after validation": {"save_on_train_epoch_end": False},
}


@works_with("every trigger: epochs, steps, time, before and after validation")
@pytest.mark.parametrize("monitor", ["score", None])
@pytest.mark.parametrize("trigger", TRIGGERS.values(), ids=TRIGGERS)
def test_no_trigger_saves_a_denser_model_as_best(trigger, monitor, fit, tmp_path):
    sparse = best(dirpath=tmp_path / "sparse", save_top_k=-1, monitor=monitor, **trigger)
    plain = ModelCheckpoint(
        tmp_path / "plain", save_top_k=-1, monitor=monitor, mode="max", **trigger
    )
    fit(sparse, plain, limit_train_batches=3)
    kept = [zeros(path) for path in Path(tmp_path / "sparse").iterdir()]
    assert set(kept) == {ZEROS}
    dense = [zeros(path) for path in Path(tmp_path / "plain").iterdir()]
    assert min(dense) < ZEROS
    if monitor is None:
        assert len(kept) == dense.count(ZEROS)


@works_with("saving between validations: the score of a denser model does not count")
def test_a_score_of_the_last_validation_counts_for_the_model_that_was_validated(fit, tmp_path):
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=33, unit="step"))
    sparse = best(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=5)
    plain = ModelCheckpoint(
        tmp_path / "plain", monitor="score", mode="max", save_top_k=-1, every_n_train_steps=5
    )
    fit(sparse, plain, pruning=pruning)
    steps = sorted(int(path.stem.rpartition("=")[2]) for path in tmp_path.glob("*.ckpt"))
    assert steps == [45, 50, 55, 60]  # 35 and 40 would have the score of the end of epoch 2
    assert float(sparse.best_model_score) == pytest.approx(0.7)
    stale = [score for path, score in plain.best_k_models.items() if "step=35" in path]
    assert float(stale[0]) == pytest.approx(0.97)


def test_a_score_of_training_counts_at_once(fit, tmp_path):
    log = LambdaCallback(
        on_train_batch_end=lambda trainer, module, *_: module.log("seen", trainer.global_step)
    )
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=33, unit="step"))
    fit(
        log,
        best(dirpath=tmp_path, save_top_k=-1, monitor="seen", every_n_train_steps=5),
        pruning=pruning,
    )
    steps = sorted(int(path.stem.rpartition("=")[2]) for path in tmp_path.glob("*.ckpt"))
    assert steps == [35, 40, 45, 50, 55, 60]


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


@works_with("two with different sparsities, and a plain `ModelCheckpoint` beside them")
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


class Checked(Classifier):
    """Can be tested."""

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)


class Level(Checked):
    """Is never better than it was."""

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", 0.5)


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


@works_with("a sparsity out of [0, 1]", refused=True)
@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=rf"need 0 <= sparsity <= 1, got sparsity={sparsity}"):
        SparsityCheckpoint(sparsity=sparsity)


@works_with("no `PruningCallback` beside it", refused=True)
def test_a_checkpoint_without_pruning_is_refused(make_model, make_trainer, loader):
    late = LambdaCallback(on_fit_start=lambda *_: pytest.fail("refused too late"))
    trainer = make_trainer(SparsityCheckpoint(), late, enable_checkpointing=True)
    with pytest.raises(ValueError, match="need a PruningCallback beside a SparsityCheckpoint"):
        trainer.fit(make_model(), loader)
    trainer.validate(make_model(), loader, verbose=False)  # where nothing is saved


@works_with("a sparsity above the final target", refused=True)
def test_a_sparsity_that_will_not_be_reached_is_refused(fit):
    with pytest.raises(ValueError, match=r"need sparsity <= 0\.7500.*got sparsity=0\.8 of Spars"):
        fit(best(sparsity=0.8))
    mean = PruningCallback(sparsity={"net.0": 0.9, "net.2": 0.3})
    with pytest.raises(ValueError, match=r"need sparsity <= 0\.7800.*got sparsity=0\.8 of Spars"):
        fit(best(sparsity=0.8), pruning=mean)


@works_with("a model that is sparser than what is due, by `keep_zeros`")
def test_zeros_that_are_kept_count(fit, make_model, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.net[0].weight[:, ::2] = 0.0
    pruning = PruningCallback(0.75, OneShotSchedule(end=3, unit="epoch"), keep_zeros=True)
    fit(best(sparsity=0.4, dirpath=tmp_path), pruning=pruning, model=model)
    assert epochs(tmp_path) == [0]


def test_a_mean_of_equal_targets_can_be_named(fit, tmp_path):
    pruning = PruningCallback(sparsity={"net.0": 0.9, "net.2": 0.3}, schedule=OneShotSchedule())
    fit(best(sparsity=0.78, dirpath=tmp_path), pruning=pruning)
    assert pruning.pruner.final_sparsity == pytest.approx(0.78)
    assert epochs(tmp_path)


@works_with("layers that are unfrozen later")
@pytest.mark.parametrize("named", [0.75, None])
def test_what_is_frozen_at_the_start_can_still_reach_the_sparsity(named, fit, make_model, tmp_path):
    def unfreeze(trainer, module):
        if trainer.current_epoch == 2:
            module.net[0].requires_grad_(True)

    model = make_model()
    model.net[0].requires_grad_(False)
    pruning = PruningCallback(
        sparsity={"net.0": 0.75, "net.2": None},
        schedule=PolynomialSchedule(begin=0, end=1, unit="epoch"),
    )
    sparse = best(sparsity=named, save_top_k=-1, dirpath=tmp_path)
    fit(sparse, LambdaCallback(on_train_epoch_start=unfreeze), pruning=pruning, model=model)
    assert epochs(tmp_path) == [2, 3, 4, 5]
    model.net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"need sparsity <= 0\.7500"):
        fit(best(sparsity=0.8), pruning=PruningCallback(0.75), model=model)


def stop_at(epoch):
    return LambdaCallback(
        on_train_epoch_end=lambda trainer, _: setattr(
            trainer, "should_stop", trainer.current_epoch == epoch
        )
    )


@works_with("a run that ends before the sparsity is reached warns with the numbers")
@pytest.mark.filterwarnings("ignore:training stopped before the schedule's end")
def test_a_fit_without_a_best_model_warns(fit, tmp_path):
    sparse = best(dirpath=tmp_path)
    with pytest.warns(UserWarning, match=r"no model: reached sparsity 0\.4719 of 0\.7500; end"):
        fit(sparse, stop_at(1))
    assert sparse.best_model_path == ""
    assert not epochs(tmp_path)
    fit(best(dirpath=tmp_path, save_top_k=0), stop_at(1))  # wants none


def test_a_fit_without_a_save_says_so(fit, tmp_path):
    with pytest.warns(UserWarning, match=r"reached sparsity 0\.7500 of 0\.7500; no save was due"):
        fit(best(dirpath=tmp_path, every_n_epochs=10))


def test_a_second_fit_is_judged_alone(fit, tmp_path):
    sparse = best(dirpath=tmp_path, every_n_epochs=6)
    fit(sparse)
    with pytest.warns(UserWarning, match="has considered no model"):
        fit(sparse, max_epochs=5)


def test_a_trial_run_does_not_warn(fit):
    fit(best(), fast_dev_run=3)


@works_with("LightningCLI YAML with the arguments of `ModelCheckpoint`")
def test_a_config_takes_every_argument_of_a_model_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-prune"])
    arguments = {
        "sparsity": 0.8,
        "dirpath": str(tmp_path),
        "filename": "{epoch}-{sparsity:.2f}",
        "monitor": "val_loss",
        "verbose": True,
        "save_last": "link",
        "save_top_k": 2,
        "save_on_exception": True,
        "save_weights_only": True,
        "mode": "max",
        "auto_insert_metric_name": False,
        "every_n_train_steps": None,
        "train_time_interval": "0:10:00",
        "every_n_epochs": None,
        "save_on_train_epoch_end": False,
        "enable_version_counter": False,
    }

    def parse(name="SparsityCheckpoint", **more):
        callbacks = [
            {"class_path": "lightning_prune.PruningCallback"},
            {"class_path": name, "init_args": arguments | more},
        ]
        config = tmp_path / "config.yaml"
        trainer = {"accelerator": "cpu", "logger": False, "callbacks": callbacks}
        config.write_text(yaml.safe_dump({"trainer": trainer}))
        return cli("--config", str(config))

    def cli(*args):
        return PruneCLI(
            Classifier,
            args=list(args),
            run=False,
            seed_everything_default=False,
            parser_class=PruneArgumentParser,
        )

    for name in ("SparsityCheckpoint", "lightning_prune.SparsityCheckpoint"):
        checkpoint = parse(name).trainer.checkpoint_callback
        assert isinstance(checkpoint, SparsityCheckpoint)
        assert checkpoint.sparsity == 0.8
        assert checkpoint.save_last == "link"
        assert checkpoint._train_time_interval == timedelta(minutes=10)
    with pytest.raises(SystemExit):
        parse("lightning_prune.SparsityCheckpoint", monitr="val_loss")
    shown = capsys.readouterr().err
    assert "did you mean 'monitor'? It can be: sparsity, dirpath, filename, monitor" in shown
    with pytest.raises(SystemExit):
        parse(sparsity=1.5)
    assert "need 0 <= sparsity <= 1, got sparsity=1.5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli("--trainer.callbacks.help=SparsityCheckpoint")
    shown = capsys.readouterr().out
    assert set(re.findall(r"--trainer\.callbacks\.(\w+)", shown)) >= set(arguments)


def test_lightning_saves_its_best_models_through_the_one_method_that_is_overridden(fit, tmp_path):
    """A private method of Lightning's: where it is gone, every model would be considered."""

    class Deaf(ModelCheckpoint):
        def _save_topk_checkpoint(self, trainer, monitor_candidates):
            assert "score" in monitor_candidates

    private = {name for name in vars(SparsityCheckpoint) if hasattr(ModelCheckpoint, name)}
    assert {name for name in private if re.match("_[a-z]", name)} == {"_save_topk_checkpoint"}
    fit(Deaf(tmp_path / "deaf", monitor="score"), best(dirpath=tmp_path / "best"))
    assert epochs(tmp_path / "deaf") == []
    assert epochs(tmp_path / "best") == [4]


def blocks() -> list[str]:
    section = PAGE.read_text().split(f"## {SECTION}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@works_with("`EarlyStopping` that begins when pruning has ended")
def test_the_snippets_of_the_page_do_what_it_says(loader, tmp_path, monkeypatch):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    small = {"accelerator": "cpu", "default_root_dir": tmp_path, "limit_train_batches": 2}
    monkeypatch.setattr("lightning.pytorch.Trainer", partial(Trainer, **quiet, **small))
    names = {
        "model": Level(),
        **dict.fromkeys(("train_loader", "val_loader", "test_loader"), loader),
    }
    for block in blocks():
        exec(block, names)
    assert zeros(names["best"].best_model_path) == round(0.9 * (16 * 32 + 32 * 4))
    # Pruning ends in epoch 15, the score of which three others do not better.
    assert names["stopping"].stopped_epoch == 13


def test_early_stopping_alone_stops_before_pruning_has_ended(make_trainer, loader):
    stopping = EarlyStopping(monitor="val_acc", mode="max", patience=3)
    trainer = make_trainer(PruningCallback(), stopping, max_epochs=20, limit_train_batches=2)
    with pytest.warns(UserWarning, match="training stopped before the schedule's end"):
        trainer.fit(Level(), loader, loader)
    assert stopping.stopped_epoch == 3
