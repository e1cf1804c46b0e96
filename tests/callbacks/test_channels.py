"""Channels in a Trainer: resumed, averaged, rewound, logged and printed like everything else."""

from copy import deepcopy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune import (
    ChannelPattern,
    FisherCriterion,
    GlobalAllocation,
    MagnitudeCriterion,
    MultiStepSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    Rewind,
    SparsityCheckpoint,
    SparsityMonitor,
    UniformAllocation,
    WandaCriterion,
    export_onnx,
    measure_sensitivity,
    prune_once,
    shrink,
)
from tests.callbacks.conftest import Classifier, Record
from tests.callbacks.replicas import assert_equal, loader as replicas_loader, make_trainer, outcome
from tests.callbacks.runs import STEPS, Save, dataset, fit
from tests.post_training.models import Model, trainer_with

pytestmark = pytest.mark.usefixtures("traced_once")


class Deep(Classifier):
    """Inner channels of 32 and 24, of which half is 16 and, by the even multiple, 16."""

    def __init__(self, optimizer: str = "adamw") -> None:
        super().__init__(optimizer)
        self.example_input_array = torch.zeros(2, 16)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Linear(16, 32),
                nn.BatchNorm1d(32),
                nn.ReLU(),
                nn.Linear(32, 24),
                nn.ReLU(),
                nn.Linear(24, 4),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def channels(**recipe):
    return PruningCallback(**{"sparsity": 0.5, "pattern": ChannelPattern(), **recipe})


def assert_whole(model: LightningModule, masks: dict[str, Tensor]) -> None:
    """What is pruned is zero, in every place where a channel lies."""
    first, second = masks["net.0.bias"], masks["net.3.bias"]
    assert torch.equal(masks["net.1.weight"], first)
    assert torch.equal(masks["net.3.weight"], second[:, None] & first)
    assert torch.equal(masks["net.5.weight"], second.expand(4, 24))
    for name, mask in masks.items():
        assert not model.get_parameter(name).detach()[~mask].any()


@pytest.mark.parametrize(
    ("criterion", "allocation"),
    [
        (MagnitudeCriterion(), GlobalAllocation()),
        (FisherCriterion(), UniformAllocation()),
        (WandaCriterion(), UniformAllocation()),
    ],
    ids=str,
)
@pytest.mark.works_with("Stop and resume", "after any step, channels")
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(criterion, allocation, tmp_path):
    def pruning():
        schedule = PolynomialSchedule(every=0.2, end=0.9)
        pattern = ChannelPattern(round_to=4)
        return channels(
            criterion=criterion, allocation=allocation, schedule=schedule, pattern=pattern
        )

    whole, save = fit(pruning=pruning(), model=Deep()), Save(tmp_path)
    assert not whole.differences(fit(save, pruning=pruning(), model=Deep()))
    assert save.saved == list(range(1, STEPS + 1))
    assert_whole(whole.model, whole.pruning.masks)
    for step in save.saved:
        path = tmp_path / f"{step}.ckpt"
        resumed = fit(pruning=pruning(), model=Deep(), resume=path, seed=1)
        assert not whole.after(step).differences(resumed), step


def test_a_checkpoint_loads_into_the_plain_model(tmp_path):
    run = fit(pruning=channels(), model=Deep())
    run.trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    state = torch.load(tmp_path / "pruned.ckpt", weights_only=True)
    plain = Deep()
    plain.load_state_dict(state["state_dict"])
    assert_whole(plain, run.pruning.masks)
    masks = state["callbacks"]["PruningCallback"]["masks"]
    assert masks["net.1.bias"].dtype == torch.uint8


def test_what_is_logged_counts_channels_and_the_parameters_that_go():
    pruning = channels()
    run = fit(pruning=pruning, model=Deep())
    logged = run.curve[STEPS - 1]
    assert logged["sparsity"] == pytest.approx(1 - (16 + 16) / (32 + 24))  # 12 of 24 is half way
    assert logged["sparsity_target"] == 0.5
    whole = sum(parameter.numel() for parameter in run.model.parameters())
    small = 16 * 16 + 3 * 16 + 16 * 16 + 16 + 16 * 4 + 4
    assert logged["parameter_sparsity"] == pytest.approx(1 - small / whole)
    assert "parameter_sparsity" not in fit(pruning=PruningCallback()).curve[0]


def test_the_table_lists_groups_and_what_stays_dense(capsys):
    fit(pruning=channels(), model=Deep(), enable_model_summary=True)
    begin, end = capsys.readouterr().out.split("To be pruned")[1].split("Pruned")
    for column in ("channels of", "tensors", "channels", "kept", "sparsity", "final"):
        assert column in begin
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in end.splitlines()]
    rows = [row for row in cells if row and row[0]]
    assert rows == [
        ["net.0.weight", "5", "32", "16", "0.5000", "0.5000"],
        ["net.3.weight", "3", "24", "16", "0.3333", "0.3333"],
        ["all", "7", "56", "32", "0.4286", "0.4286"],
    ]
    assert "dense (network output): net.5.weight, net.5.bias" in end
    assert "takes away 0.5707 of all parameters" in " ".join(end.split())
    assert "takes away" not in begin


def test_the_monitor_logs_each_group(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    monitor = SparsityMonitor(histograms_every=1)
    fit(monitor, pruning=channels(), model=Deep(), logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    names = {"overall", "net.0.weight", "net.3.weight"}
    for kind in ("sparsity", "sparsity_target", "mask_change"):
        found = {tag.split("/")[1] for tag in tags["scalars"] if tag.startswith(f"{kind}/")}
        assert found == names
    changes = [event.value for event in events.Scalars("mask_change/net.0.weight")]
    assert sum(changes) == 0.5
    assert events.Scalars("sparsity/net.3.weight")[-1].value == pytest.approx(8 / 24)
    assert set(tags["histograms"]) == {f"kept_weights/net.{i}.weight" for i in (0, 3, 5)}
    assert "channels of" in str(events.Tensors("sparsity/text_summary")[0].tensor_proto)


def test_an_averaged_model_is_pruned_in_every_place():
    pruning = channels()
    run = fit(EMAWeightAveraging(decay=0.9), pruning=pruning, model=Deep())
    assert_whole(run.model, pruning.masks)
    assert torch.equal(run.model.net[1].bias != 0, pruning.masks["net.1.bias"])


def test_each_round_of_rewinding_goes_back_under_the_channels_that_are_left():
    schedule = MultiStepSchedule(milestones=[4, 8], unit="step")
    pruning = channels(schedule=schedule, rewind=Rewind(to=1))
    record = Record(pruning)
    run = fit(record, pruning=pruning, model=Deep())
    assert_whole(run.model, pruning.masks)
    counts = [round(56 * (1 - sparsity)) for sparsity in record.sparsities]
    assert counts == [56] * 4 + [24 + 16] * 4 + [16 + 16] * 7


def test_the_best_sparse_model_is_found_though_counts_are_rounded(tmp_path):
    best = SparsityCheckpoint(monitor="val_acc", mode="max", dirpath=tmp_path)
    fit(best, pruning=channels(), model=Deep(), validate=True)
    assert best.best_model_path


def test_compiled_layers_are_pruned_by_their_plain_names():
    model, pruning = Deep(), channels()
    model.net = torch.compile(model.net, backend="eager")
    fit(pruning=pruning, model=model)
    assert list(pruning.masks)[:2] == ["net.0.weight", "net.0.bias"]
    assert pruning.sparsity == 1 - 32 / 56


@pytest.mark.parametrize(
    "example", [torch.zeros(1, 16), (torch.zeros(3, 16),), {"x": torch.zeros(2, 16)}]
)
def test_an_example_can_be_given_to_the_callback(example):
    model, pruning = Deep(), channels(example=example)
    model.example_input_array = None
    fit(pruning=pruning, model=model)
    assert_whole(model, pruning.masks)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_an_example_in_single_precision_serves_in_every_precision(precision, monkeypatch, tmp_path):
    monkeypatch.undo()  # trace indeed
    model, pruning = Deep(), channels()
    loader = DataLoader(dataset(), batch_size=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        precision=precision,
        enable_progress_bar=False,
        callbacks=[pruning],
        **quiet,
    )
    trainer.fit(model, loader)
    assert model.example_input_array.dtype == torch.float32
    assert_whole(model, pruning.masks)
    smaller = shrink(model)
    assert [smaller.net[0].out_features, smaller.net[3].out_features] == [16, 16]
    assert smaller.net[0].weight.dtype == model.net[0].weight.dtype
    assert export_onnx(smaller, tmp_path / "smaller.onnx").any_batch


def test_without_an_example_the_error_says_what_to_set():
    model = Deep()
    model.example_input_array = None
    with pytest.raises(ValueError, match=r"need an example .* set self\.example_input_array = "):
        fit(pruning=channels(), model=model)


def test_looking_for_channels_changes_nothing_in_the_training(monkeypatch):
    monkeypatch.undo()  # trace indeed
    plain = fit(model=Deep())
    pruning = channels(sparsity=0.0)
    assert fit(pruning=pruning, model=Deep()).weights == plain.weights
    assert pruning.pruner.groups


# -- without training -----------------------------------------------------------------------------


class Traceable(Model):
    """The model of the commands, with an example."""

    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, 8)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("criterion", [MagnitudeCriterion(), FisherCriterion(), WandaCriterion()])
def test_a_trained_model_loses_channels_in_one_update(criterion, tmp_path):
    model, path = Traceable(), tmp_path / "pruned.ckpt"
    before = deepcopy(model.state_dict())
    trainer = trainer_with(channels(criterion=criterion))
    report = prune_once(trainer, model, batches=3, statistics=0, output=path)
    masks = report.pruner.masks
    assert int(masks["net.1.bias"].sum()) == 8
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] * masks.get(name, 1)), name
    pruning = channels(keep_zeros=True, sparsity=0.0)
    trainer_with(pruning).fit(Traceable(), ckpt_path=path, weights_only=True)
    assert_equal(pruning.masks, masks)


def test_an_example_of_the_callback_serves_without_training():
    model = Traceable()
    model.example_input_array = None
    report = prune_once(trainer_with(channels(example=torch.zeros(2, 8))), model)
    assert report.pruner.sparsity == 0.5


def test_the_sensitivity_of_channels_is_that_of_each_group_and_written_for_all_its_producers():
    class Branches(Traceable):
        def __init__(self):
            super().__init__()
            self.net = None
            self.one, self.other = nn.Linear(8, 16), nn.Linear(8, 16)
            self.middle, self.last = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.last(self.middle((self.one(x) + self.other(x)).relu()).relu())

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("kept", (self.one.bias != 0).float().sum() + (self.middle.bias != 0).sum())

    model = Branches()
    before = deepcopy(model.state_dict())
    recipe = channels(pattern=ChannelPattern(scope="all"))
    sensitivity = measure_sensitivity(
        trainer_with(recipe), model, monitor="kept", mode="max", sparsities=(0.5, 0.9)
    )
    both = {0.5: 8 + 32, 0.9: 8 + 32}
    assert sensitivity.metrics == {
        "one.weight": both,
        "other.weight": both,
        "middle.weight": {0.5: 16 + 16, 0.9: 16 + 8},
    }
    assert_equal(dict(model.state_dict()), before)
    again = channels(
        sparsity=sensitivity.targets(tolerance=20), pattern=ChannelPattern(scope="all")
    )
    trainer_with(again).fit(model)
    assert [group.name for group in again.pruner.groups] == ["one.weight", "middle.weight"]


# -- replicas -------------------------------------------------------------------------------------


def fit_replicas(folder):
    torch.manual_seed(0)
    pruning, model = channels(schedule=OneShotSchedule(end=0.5)), Deep()

    def differ():
        torch.manual_seed(torch.distributed.get_rank())

    model.on_train_start = differ
    make_trainer(folder, DDPStrategy(), pruning).fit(model, replicas_loader())
    return outcome(pruning, model)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.works_with("Replicas and shards", "DDP, channels: the same masks on all processes")
def test_replicas_choose_the_same_channels(two, tmp_path):
    (masks, weights), (other_masks, other_weights) = two(fit_replicas, tmp_path)
    assert_equal(masks, other_masks)
    for name, mask in masks.items():
        assert torch.equal(weights[name], other_weights[name])
        assert not weights[name][~mask].any()
    assert int(masks["net.1.bias"].sum()) == 16
