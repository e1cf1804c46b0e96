import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_prune import PruningCallback, SparsityMonitor
from tests.hooks import registered


class Remember(Logger):
    """The least that a logger can be."""

    name, version = "remember", 0

    def __init__(self):
        super().__init__()
        self.metrics = []

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


@pytest.fixture
def events(make_model, make_trainer, loader, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    monitor = SparsityMonitor(quality="val_acc", histograms_every=1)
    pruning = PruningCallback(sparsity=0.75)
    make_trainer(monitor, pruning, logger=logger).fit(make_model(), loader, loader)
    accumulator = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def last(events, tag):
    return events.Scalars(tag)[-1].value


def test_tensorboard_gets_curves_overall_and_per_tensor(events):
    tags = set(events.Tags()["scalars"])
    assert {"sparsity", "sparsity_target", "val_acc"} <= tags
    for tag in ("overall", "net.0.weight", "net.2.weight"):
        assert {f"sparsity/{tag}", f"sparsity_target/{tag}", f"mask_change/{tag}"} <= tags
    assert last(events, "sparsity/overall") == last(events, "sparsity_target/overall") == 0.75
    kept = 0.25 * (512 + 128)
    layers = [last(events, f"sparsity/net.{i}.weight") for i in (0, 2)]
    assert (1 - layers[0]) * 512 + (1 - layers[1]) * 128 == kept


def test_the_changes_add_up_to_what_was_pruned(events):
    changes = [event.value for event in events.Scalars("mask_change/overall")]
    assert sum(changes) == pytest.approx(0.75)


def test_tensorboard_gets_layout_histograms_table_and_picture(events):
    tags = events.Tags()
    assert set(tags["histograms"]) == {"kept_weights/net.0.weight", "kept_weights/net.2.weight"}
    assert tags["images"] == ["val_acc_over_sparsity"]
    recipe = events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "class_path: lightning_prune.PolynomialSchedule" in recipe
    summary = [tag for tag in tags["tensors"] if tag.startswith("custom_scalars__config__")]
    layouts = events.Tensors(summary[0])
    assert len(layouts) == 1
    layout = str(layouts[0].tensor_proto)
    for chart in ("val_acc and sparsity", "sparsity and target", "sparsity by layer: net"):
        assert chart in layout
    assert "^sparsity_by_layer/net$" in layout
    text = str(events.Tensors("sparsity/text_summary")[0].tensor_proto)
    assert "net.0.weight" in text
    assert "| all |" in " ".join(text.split())


def test_each_curve_of_a_chart_is_a_run_and_so_has_a_color(events):
    def read(run):
        accumulator = EventAccumulator(str(Path(events.path) / run))
        accumulator.Reload()
        scalars = accumulator.Tags()["scalars"]
        return {tag: accumulator.Scalars(tag)[-1].value for tag in scalars}

    folders = {folder.name for folder in Path(events.path).iterdir() if folder.is_dir()}
    assert folders == {"net.0", "net.2", "sparsity", "target", "val_acc"}
    assert read("target") == {"sparsity_and_target": 0.75}
    assert read("sparsity") == {"sparsity_and_target": 0.75, "val_acc_and_sparsity": 0.75}
    assert read("val_acc") == {"val_acc_and_sparsity": last(events, "val_acc")}
    for layer in ("net.0", "net.2"):
        logged = last(events, f"sparsity/{layer}.weight")
        assert read(layer) == {"sparsity_by_layer/net": logged}


def test_the_names_of_a_chart_are_matched_literally(make_model, make_trainer, loader, tmp_path):
    model, logger = make_model(), TensorBoardLogger(tmp_path)
    model.validation_step = lambda batch, batch_idx: model.log("acc(top.1)", torch.zeros(()))
    monitor = SparsityMonitor(quality="acc(top.1)", histograms_every=None)
    make_trainer(monitor, PruningCallback(), logger=logger).fit(model, loader, loader)
    accumulator = EventAccumulator(logger.log_dir)
    accumulator.Reload()
    (config,) = (tag for tag in accumulator.Tags()["tensors"] if "custom_scalars" in tag)
    layout = accumulator.Tensors(config)[0].tensor_proto.string_val[0]
    assert rb"^acc\(top\.1\)_and_sparsity$" in layout


def test_any_logger_gets_the_scalars(make_model, make_trainer, loader, tmp_path):
    remember, csv = Remember(), CSVLogger(tmp_path)
    pruning = PruningCallback(sparsity=0.75)
    trainer = make_trainer(
        pruning, SparsityMonitor(quality="val_acc", histograms_every=1), logger=[remember, csv]
    )
    trainer.fit(make_model(), loader, loader)
    updates = [(step, m) for step, m in remember.metrics if "mask_change/overall" in m]
    assert len(updates) == pruning.pruner.updates > 3
    assert updates[-1][1]["sparsity/overall"] == 0.75
    assert (
        "sparsity/net.0.weight" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()
    )


def test_the_quality_is_recorded_at_each_sparsity(make_model, make_trainer, loader):
    monitor, pruning = SparsityMonitor(quality="val_acc"), PruningCallback(sparsity=0.75)
    trainer = make_trainer(monitor, pruning, max_epochs=3)
    trainer.fit(make_model(), loader, loader)
    sparsities = [sparsity for sparsity, _ in monitor.quality_curve]
    assert len(sparsities) == 3
    assert 0 < sparsities[0] < sparsities[-1] == 0.75
    assert monitor.quality_curve[-1][1] == float(trainer.callback_metrics["val_acc"])
    make_trainer(monitor, PruningCallback(), max_epochs=2).fit(make_model(), loader, loader)
    assert len(monitor.quality_curve) == 2  # afresh
    resumed = SparsityMonitor(quality="val_acc")
    resumed.load_state_dict(monitor.state_dict())
    assert resumed.quality_curve == monitor.quality_curve


def test_an_unknown_quality_lists_what_is_logged_before_training(make_model, make_trainer, loader):
    pruning = PruningCallback()
    with pytest.raises(ValueError, match=r"quality='val_accuracy'; validation logs \['val_acc'\]"):
        make_trainer(pruning, SparsityMonitor(quality="val_accuracy")).fit(
            make_model(), loader, loader
        )
    assert pruning.masks == {}


def test_a_monitor_alone_is_refused(make_model, make_trainer, loader):
    with pytest.raises(ValueError, match="need a PruningCallback beside a SparsityMonitor"):
        make_trainer(SparsityMonitor()).fit(make_model(), loader)


def test_a_picture_without_matplotlib_names_the_extra(
    make_model, make_trainer, loader, tmp_path, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    trainer = make_trainer(
        PruningCallback(), SparsityMonitor(quality="val_acc"), logger=TensorBoardLogger(tmp_path)
    )
    remedies = r"lightning-prune\[plots\]', or set quality=null"
    with pytest.raises(ModuleNotFoundError, match=remedies):
        trainer.fit(make_model(), loader, loader)


def test_a_bad_interval_is_refused():
    with pytest.raises(ValueError, match="got histograms_every=0"):
        SparsityMonitor(histograms_every=0)


@pytest.fixture
def no_onnx(monkeypatch):
    """Leave out what takes long."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )


@pytest.fixture
def called(make_model):
    """Return a model whose forward is called, with a normalization and dropout."""
    model = make_model()
    model.net.append(nn.BatchNorm1d(4)).append(nn.Dropout(0.5))

    def training_step(batch, batch_idx):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def validation_step(batch, batch_idx):
        model(batch[0])

    model.forward = model.net.forward
    model.training_step, model.validation_step = training_step, validation_step
    return model


def test_a_report_of_the_pruned_model_ends_the_training(
    called, make_trainer, loader, tmp_path, no_onnx
):
    logger, remember = TensorBoardLogger(tmp_path), Remember()
    monitor, pruning = SparsityMonitor(report=True), PruningCallback(sparsity=0.75)
    make_trainer(monitor, pruning, logger=[logger, remember]).fit(called, loader, loader)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    text = str(events.Tensors("report/text_summary")[0].tensor_proto)
    assert "Classifier** on 1 x 16 float32" in text
    assert "0.7500 of the prunable weights are zero" in text
    step, last = remember.metrics[-1]
    assert step == 20
    assert last["report/effective_macs"] == 0.25
    assert 0.25 < last["report/compressed_bytes"] < 0.5
    assert last["report/speedup_torch"] > 0
    assert events.Scalars("report/effective_macs")[0].value == 0.25


def test_a_report_changes_nothing(called, make_trainer, loader, no_onnx):
    def state():
        return {
            "tensors": {name: t.clone() for name, t in called.state_dict().items()},
            "gradients": [p.grad.clone() for p in called.parameters()],
            "modes": [module.training for module in called.modules()],
            "hooks": [id(hook) for hook in registered(called)],
            "random": torch.get_rng_state(),
        }

    class Before(SparsityMonitor):
        def on_fit_end(self, trainer, pl_module):
            for parameter in pl_module.parameters():
                parameter.grad = torch.randn_like(parameter)
            self.before = state()
            super().on_fit_end(trainer, pl_module)
            self.after = state()

    monitor, unhooked = Before(report=True), [id(hook) for hook in registered(called)]
    make_trainer(monitor, PruningCallback()).fit(called, loader, loader)
    torch.testing.assert_close(monitor.after, monitor.before, rtol=0, atol=0)
    assert monitor.after["hooks"] == unhooked


def test_a_run_with_a_report_ends_as_one_without(make_model, make_trainer, loader, no_onnx):
    ends = []
    for report in (False, True):
        torch.manual_seed(0)
        model = make_model()
        model.example_input_array = torch.randn(1, 16)
        model.forward = model.net.forward
        trainer = make_trainer(PruningCallback(), SparsityMonitor(report=report))
        trainer.fit(model, loader, loader)
        ends.append([model.state_dict(), trainer.optimizers[0].state_dict(), torch.rand(1)])
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


def test_a_report_that_is_not_possible_is_no_reason_to_lose_a_training(
    make_model, make_trainer, loader
):
    model = make_model()
    trainer = make_trainer(PruningCallback(sparsity=0.75), SparsityMonitor(report=True))
    with pytest.warns(UserWarning, match="no report: need an example .* constructor of Classifier"):
        trainer.fit(model, loader, loader)
    assert trainer.state.finished
    assert not registered(model)
    model = make_model()
    model.example_input_array = torch.randn(1, 3)  # of another shape than the model takes
    model.forward = model.net.forward
    trainer = make_trainer(PruningCallback(sparsity=0.75), SparsityMonitor(report=True))
    with pytest.warns(UserWarning, match="no report: .*mat1 and mat2 shapes cannot be multiplied"):
        trainer.fit(model, loader, loader)
    assert trainer.state.finished
