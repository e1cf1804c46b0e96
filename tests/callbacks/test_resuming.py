"""Runs that are resumed equal the uninterrupted ones, bit for bit."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from lightning_prune import (
    BlockPattern,
    CosineSchedule,
    ERKAllocation,
    ExponentialSchedule,
    FisherCriterion,
    GlobalAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
    MovementCriterion,
    MultiStepSchedule,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    RandomCriterion,
    Regrow,
    SparsityMonitor,
    TaylorCriterion,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.models import Gan
from tests.callbacks.runs import BATCHES, EPOCHS, STEPS, SaliencySum, Save, dataset, fit

CRITERIA = {
    "magnitude": MagnitudeCriterion(),
    "random": RandomCriterion(),
    "a criterion with state": SaliencySum(),
}
ALL_CRITERIA = [
    pytest.param(
        criterion,
        id=name,
        marks=pytest.mark.works_with("Stop and resume", f"after any step, {name}"),
    )
    for name, criterion in CRITERIA.items()
] + [
    pytest.param(
        criterion(),
        id=criterion.__name__,
        marks=pytest.mark.works_with("Stop and resume", "after any step, a criterion with state"),
    )
    for criterion in (TaylorCriterion, FisherCriterion, MovementCriterion, WandaCriterion)
]
plain = {"loader": DataLoader(dataset(), batch_size=8)}


@pytest.mark.parametrize("criterion", ALL_CRITERIA)
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(criterion, tmp_path):
    def pruning():
        every = 0.2 if criterion.resets_at_update else None  # so that there is something to forget
        return PruningCallback(criterion=criterion, schedule=PolynomialSchedule(every=every))

    whole, save = fit(pruning=pruning()), Save(tmp_path)
    assert not whole.differences(fit(save, pruning=pruning()))
    assert save.saved == list(range(1, STEPS + 1))
    for step in save.saved:
        resumed = fit(pruning=pruning(), resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


@pytest.mark.parametrize("at", ["last batch", "epoch", "validation"])
@pytest.mark.works_with("Stop and resume", "at the end of an epoch, plain `DataLoader` in order")
def test_a_plain_loader_resumes_exactly_at_the_end_of_an_epoch(at, tmp_path):
    def pruning():
        return PruningCallback(criterion=SaliencySum())

    whole, save = fit(pruning=pruning(), validate=True, **plain), Save(tmp_path, at={at})
    fit(save, pruning=pruning(), validate=True, **plain)
    for step in (BATCHES, 2 * BATCHES):
        assert step in save.saved
        path = tmp_path / f"{step}.ckpt"
        resumed = fit(pruning=pruning(), resume=path, seed=1, validate=True, **plain)
        assert not whole.after(step).differences(resumed)


@pytest.mark.works_with(
    "Stop and resume", "at the end of an epoch, plain `DataLoader` shuffled by `DistributedSampler`"
)
def test_a_sampler_that_is_told_the_epoch_shuffles_alike_after_the_resume(tmp_path):
    def again(*callbacks, **options):
        sampler = DistributedSampler(dataset(), num_replicas=1, rank=0, shuffle=True)
        loader = DataLoader(dataset(), batch_size=8, sampler=sampler)
        return fit(*callbacks, pruning=PruningCallback(), loader=loader, **options)

    whole = again()
    assert fit(pruning=PruningCallback(), **plain).weights != whole.weights
    again(Save(tmp_path, at={"epoch"}))
    for step in (BATCHES, 2 * BATCHES):
        resumed = again(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 on torch 2.13
@pytest.mark.works_with(
    "Stop and resume", "within an epoch, torchdata's `StatefulDataLoader`, shuffled"
)
def test_a_stateful_loader_resumes_exactly_within_an_epoch(tmp_path):
    def again(*callbacks, **options):
        sampler = StatefulDistributedSampler(dataset(), num_replicas=1, rank=0, shuffle=True)
        loader = StatefulDataLoader(dataset(), batch_size=8, sampler=sampler)
        pruning = PruningCallback(criterion=SaliencySum())
        return fit(*callbacks, pruning=pruning, loader=loader, **options)

    whole, save = again(), Save(tmp_path)
    again(save)
    within = [step for step in save.saved if step % BATCHES]
    assert len(within) == EPOCHS * (BATCHES - 1)
    for step in within:
        resumed = again(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


@pytest.mark.works_with(
    "Stop and resume",
    "within an epoch, plain `DataLoader`: same curve and sparsities, other weights",
)
def test_a_plain_loader_repeats_data_within_an_epoch_but_the_curve_is_the_same(tmp_path):
    def run(*callbacks, pruning, **options):
        return fit(*callbacks, pruning=pruning, **plain, **options)

    for make_pruning in (PruningCallback, lambda: None):
        whole = run(pruning=make_pruning())
        run(Save(tmp_path), pruning=make_pruning())
        resumed = run(pruning=make_pruning(), resume=tmp_path / "7.ckpt", seed=1)
        assert resumed.weights != whole.weights  # also without us
        assert resumed.curve == whole.after(7).curve


class Scheduled(Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@pytest.mark.parametrize(
    ("make_model", "options"),
    [
        pytest.param(
            *case, id=name, marks=pytest.mark.works_with("Stop and resume", f"after a step, {name}")
        )
        for name, case in {
            "accumulated gradients": (Classifier, {"accumulate_grad_batches": 2}),
            "clipped gradients": (Classifier, {"gradient_clip_val": 0.1}),
            "a learning rate per step": (Scheduled, {}),
            "`max_steps` alone": (Classifier, {"max_steps": 12, "max_epochs": -1}),
            "validation within the epoch": (
                Classifier,
                {"validate": True, "val_check_interval": 2},
            ),
            "two optimizers by hand": (Gan, {}),
        }.items()
    ],
)
def test_whatever_else_the_trainer_does_resumes_exactly(make_model, options, tmp_path):
    def run(*callbacks, seed=0, **more):
        torch.manual_seed(seed)
        pruning = PruningCallback(criterion=SaliencySum())
        return fit(*callbacks, pruning=pruning, model=make_model(), **options, **more)

    whole, save = run(), Save(tmp_path)
    run(save)
    for step in save.saved[1:-1:2]:
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        first = min(resumed.curve, default=STEPS)  # loggers count batches
        assert not whole.after(first).differences(resumed), step


@pytest.mark.works_with("Stop and resume", "the curves of `SparsityMonitor`")
def test_the_monitor_logs_the_same_points_after_a_resume(tmp_path):
    schedule = PolynomialSchedule(begin=2, end=10, every=4, unit="step")

    def run(*callbacks, **options):
        pruning = PruningCallback(schedule=schedule, criterion=RandomCriterion())
        return fit(SparsityMonitor(), *callbacks, pruning=pruning, **options)

    whole = run()
    assert [step for step, logged in whole.curve.items() if "sparsity/overall" in logged] == [
        2,
        6,
        10,
    ]
    run(Save(tmp_path))
    for step in (1, 4, 6, 8, 13):
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert resumed.curve == whole.after(step).curve, step


@st.composite
def recipes(draw: Any) -> tuple[dict[str, Any], int]:
    """Draw the five answers, but for what is refused by name, and a number of batches a step."""
    accumulate = draw(st.sampled_from([1, 2]))
    steps = EPOCHS * -(-BATCHES // accumulate)
    unit, step = draw(
        st.sampled_from([("fraction", 1 / steps), ("epoch", EPOCHS / steps), ("step", 1)])
    )
    begin, end = sorted(draw(st.lists(st.integers(0, steps), min_size=2, max_size=2, unique=True)))
    every = draw(st.sampled_from([None, 2 * step]))
    ramp = {"begin": begin * step, "end": end * step, "every": every, "unit": unit}
    pattern = draw(
        st.sampled_from(
            [
                UnstructuredPattern(),
                UnstructuredPattern(per_row=True),
                NMPattern(n=1, m=4),
                NMPattern(n=2, m=4),
                BlockPattern(shape=(4, 4)),
                BlockPattern(shape=(1, 2)),
            ]
        )
    )
    recipe = {
        "sparsity": draw(
            st.sampled_from([0.75, 0.9, 1.0, {"*": 0.9, "net.2": 0.75}, {"net.0": 0.8}])
        ),
        "schedule": draw(
            st.sampled_from(
                [
                    PolynomialSchedule(**ramp),
                    PolynomialSchedule(**ramp, initial=0.3, power=1),
                    CosineSchedule(**ramp),
                    ExponentialSchedule(**ramp),
                    OneShotSchedule(end=end * step, unit=unit),
                    MultiStepSchedule(milestones=(begin * step, end * step), unit=unit),
                ]
            )
        ),
        "allocation": draw(
            st.sampled_from(
                [
                    None,
                    UniformAllocation(),
                    GlobalAllocation(),
                    ERKAllocation(scale=0.5),
                    LAMPAllocation(),
                ]
            )
        ),
        "criterion": draw(
            st.sampled_from([MagnitudeCriterion(), RandomCriterion(seed=3), SaliencySum()])
        ),
        "pattern": pattern,
        "regrow": draw(
            st.sampled_from(
                [
                    None,
                    Regrow(schedule=CosineSchedule(**ramp)),
                    Regrow(schedule=CosineSchedule(**ramp), criterion=RandomCriterion()),
                    Regrow(schedule=PolynomialSchedule(**ramp), share=1.0, first=None),
                ]
            )
        ),
    }
    return recipe, accumulate


@pytest.mark.slow
@pytest.mark.works_with("Stop and resume", "any recipe, interrupted twice at random (hypothesis)")
@settings(
    max_examples=40,
    phases=[Phase.generate],  # to shrink a failure would take minutes
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    drawn=recipes(),
    optimizer=st.sampled_from(["adamw", "sgd", "adagrad"]),
    stops=st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
)
def test_any_recipe_resumes_exactly_from_any_step(drawn, optimizer, stops):
    recipe, accumulate = drawn

    def run(*callbacks, seed=0, **options):
        torch.manual_seed(seed)
        return fit(
            *callbacks,
            pruning=PruningCallback(**recipe),
            model=Classifier(optimizer),
            accumulate_grad_batches=accumulate,
            **options,
        )

    whole = run()
    with tempfile.TemporaryDirectory() as folder:
        resume = None
        for life in range(2):
            save = Save(Path(folder))
            run(save, resume=resume, seed=life)
            if save.saved:  # else the first stop was the last step
                step = save.saved[int(stops[life] * len(save.saved))]
                resume = Path(folder) / f"{step}.ckpt"
        resumed = run(resume=resume, seed=2)
    first = min(resumed.curve, default=STEPS)
    assert not whole.after(first).differences(resumed)
