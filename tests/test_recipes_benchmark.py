"""The fair comparison of recipes tunes, continues and judges as it says."""

import gzip
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.kit.text import read_library_text
from benchmarks.parts.recipes.arms import ARMS, DENSE, ERK, GRADUAL
from benchmarks.parts.recipes.plan import TUNING_SEED, Case, choose_best, list_tests, tune
from benchmarks.parts.recipes.results import (
    DEFAULT,
    Gain,
    collect as collect_results,
    compare_tasks,
    find_losses,
    judge,
)
from benchmarks.parts.recipes.runs import TEST, VALIDATION, Run, RunFile
from benchmarks.parts.recipes.tasks import TASKS
from benchmarks.parts.recipes.training import Trainings
from benchmarks.recipes import make_trainer
from tests.commands import run_python

RATES = (0.1, 0.2, 0.3)
TASK = replace(TASKS["LeNet"], rates=RATES, steps=30)
CASE = Case(task=TASK, arm=ARMS[GRADUAL])
ARM_NAMES = [name for name in ARMS if name != DENSE]


def make_run(setting, accuracy, bits=1.0):
    return Run(*setting, accuracy, bits, 36.0, "00000000", "torch 0")


def answer(accuracy_of, settings=None):
    """Return a function that finds a run of every setting, and keeps the settings."""

    def find(setting):
        if settings is not None:
            settings.append(setting)
        return make_run(setting, accuracy_of(setting))

    return find


# -- tuning ----------------------------------------------------------------------------------------


def test_the_best_third_of_the_short_trainings_is_trained_in_full():
    asked = []
    tuned = tune(CASE, answer(lambda setting: 100 * setting.rate, asked))
    short, full = asked[:9], asked[9:]
    assert {setting.steps for setting in short} == {10}
    assert len({(setting.timing, setting.rate) for setting in short}) == 9
    assert len(full) == 3
    assert {(setting.rate, setting.steps) for setting in full} == {(0.3, 30)}
    assert tuned.rate == 0.3


def test_the_last_rung_decides():
    def accuracy_of(setting):
        return setting.rate if setting.steps == 10 else -len(setting.timing)

    tuned = tune(CASE, answer(accuracy_of))
    assert tuned.timing == min(CASE.arm.timings, key=len)


def test_fewer_bits_are_better_where_bits_judge():
    case = replace(CASE, task=replace(TASK, judge="bits"))
    tuned = tune(case, lambda setting: make_run(setting, 50.0, bits=setting.rate))
    assert tuned.rate == 0.1


def test_no_test_sample_is_seen_before_the_tuning_is_over():
    asked = []
    tuned = tune(CASE, answer(lambda setting: setting.rate, asked))
    assert {(setting.split, setting.seed) for setting in asked} == {(VALIDATION, TUNING_SEED)}
    tests = [*list_tests(CASE, tuned, (0.9, 0.99), seeds=3)]
    assert len(tests) == 6
    assert {setting.split for setting in tests} == {TEST}
    assert TUNING_SEED not in {setting.seed for setting in tests}


@pytest.mark.parametrize("missing", [10, 30])
def test_a_case_with_a_missing_training_is_not_tuned(missing):
    def find(setting):
        return None if setting.steps == missing else make_run(setting, 1.0)

    assert tune(CASE, find) is None
    assert choose_best([TASK], [ARMS[name] for name in ARM_NAMES], find) == []


def test_the_dense_network_is_tuned_and_tested_once_for_all_sparsities():
    dense = Case(task=TASK, arm=ARMS[DENSE])
    asked = []
    tuned = tune(dense, answer(lambda setting: setting.rate, asked))
    assert len(asked) == 4
    tests = [*list_tests(dense, tuned, (0.9, 0.99), seeds=3)]
    assert {setting.sparsity for setting in tests} == {0.0}
    assert len(tests) == 3


def test_every_arm_is_tuned_with_equal_effort():
    numbers = {len(ARMS[name].timings) for name in ARM_NAMES}
    assert numbers == {3}


# -- the verdict -----------------------------------------------------------------------------------


def collect(accuracy_of, tasks=(TASK,)):
    arms = [ARMS[name] for name in ARM_NAMES]
    return collect_results(tasks, arms, (0.9, 0.99), 3, answer(accuracy_of))


def lead(points, seed_points=0.1):
    """Return accuracies: RigL leads, and seeds differ."""
    return lambda setting: points * (setting.arm == "RigL") + seed_points * setting.seed


def test_a_gain_is_that_of_the_mean_beside_the_larger_spread():
    gains = compare_tasks(collect(lead(0.5, seed_points=0.0)), f"RigL, {ERK}")
    assert gains["LeNet"] == Gain(gain=0.5, spread=0.0)
    assert gains["LeNet"].verdict == "wins"
    (gain,) = compare_tasks(collect(lead(0.1)), f"RigL, {ERK}").values()
    assert gain.spread == pytest.approx(0.1581, abs=1e-4)  # of 5 seeds, 0.1 apart
    assert gain.verdict == "alike"


def test_an_arm_that_is_behind_at_a_single_sparsity_is_named():
    def accuracy_of(setting):
        return lead(1.0)(setting) - 3 * (setting.arm == "RigL" and setting.sparsity == 0.99)

    assert [*find_losses(collect(accuracy_of), f"RigL, {ERK}")] == ["LeNet at 0.99"]
    assert [*find_losses(collect(lead(1.0)), f"RigL, {ERK}")] == []


WON, ALIKE, LOST = (Gain(gain=gain, spread=1.0) for gain in (2.0, 0.5, -2.0))


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((WON, WON, WON), "WINS"),
        ((WON, ALIKE, WON), "WINS"),
        ((WON, ALIKE, ALIKE), "does not win"),
        ((WON, WON, LOST), "does not win"),
        ((WON, WON), "not complete"),
    ],
)
def test_two_wins_without_a_loss_are_asked(gains, verdict):
    assert judge(dict(enumerate(gains)), 3) == verdict


def test_a_case_that_misses_a_seed_is_not_compared():
    def find(setting):
        return None if setting.seed == 1 else make_run(setting, 1.0)

    arms = [ARMS[name] for name in ARM_NAMES]
    results = collect_results([TASK], arms, (0.9,), 3, find)
    assert compare_tasks(results, DEFAULT) == {}


# -- the data, the file, and the script ------------------------------------------------------------


def test_no_source_file_is_in_two_splits(tmp_path):
    for index in range(16):
        (tmp_path / f"{index:02}.py").write_bytes(bytes([index]) * 9)
    splits = read_library_text(4, tmp_path)
    seen = [set(split.tensors[1].unique().tolist()) for split in splits]
    assert seen == [{*range(16)} - {4, 12, 7, 15}, {4, 12}, {7, 15}]
    samples, answers = splits.validation.tensors
    assert samples.shape == (4, 4)
    assert torch.equal(samples[:, 1:], answers[:, :-1])


def test_a_run_is_found_again_in_the_file(tmp_path):
    setting = CASE.list_candidates()[0]
    run = make_run(setting, 97.25)
    RunFile(tmp_path / "new" / "runs.csv").add(run)
    file = RunFile(tmp_path / "new" / "runs.csv")
    assert file.find(setting) == run
    assert file.find(setting._replace(seed=7)) is None
    assert file.find_data("LeNet") == ["00000000"]


def write_idx(path, values):
    header = bytes((0, 0, 8, values.dim())) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(header + values.to(torch.uint8).numpy().tobytes()))


@pytest.fixture
def command(tmp_path):
    for split, count in (("train", 512), ("t10k", 100)):
        labels = torch.arange(count) % 10
        images = torch.zeros(count, 28, 28)
        images[torch.arange(count), 2 * labels] = 255
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", labels)
    for index in range(16):
        (tmp_path / f"{index:02}.py").write_text("print('hello')\n" * 80)
    root = str(tmp_path)
    sizes = ["--scale", "0.005", "--seeds", "1", "--sparsities", "0.9"]
    folders = ["--mnist", root, "--fashion", root, "--text", root]
    plan = ["--tasks", "LeNet", "bytes", "--arms", DENSE, GRADUAL]
    return ["benchmarks/recipes.py", *folders, *sizes, *plan, "--csv", str(tmp_path / "runs.csv")]


def test_runs_with_other_data_are_refused(tmp_path):
    setting = CASE.list_candidates()[0]
    file = RunFile(tmp_path / "runs.csv")
    file.add(make_run(setting, 97.25))
    trainings = Trainings({"LeNet": TASK}, {"LeNet": None})
    trainings.data["LeNet"] = None, "11111111"
    find_or_train = make_trainer(file, trainings, until=math.inf)
    assert find_or_train(setting).accuracy == 97.25
    with pytest.raises(SystemExit, match="has runs of LeNet with other data"):
        find_or_train(setting._replace(seed=7))


@pytest.mark.rare
@pytest.mark.slow
def test_the_comparison_continues_and_reports(command, tmp_path):
    stopped = run_python(*command, "--minutes", "0", codes=[1])
    assert "start the script again to continue" in stopped.stderr
    first = run_python(*command)
    assert "| gradual magnitude, ERK |" in first.stdout
    assert "Nothing: the plan is complete." in first.stdout
    rows = (tmp_path / "runs.csv").read_text()
    assert len(rows.splitlines()) == 1 + 2 * ((3 + 1 + 1) + (9 + 3 + 1))

    picture = tmp_path / "picture.png"
    report = run_python(*command, "--seeds", "2", "--report", "--plot", str(picture))
    assert (tmp_path / "runs.csv").read_text() == rows
    assert "- bytes, gradual magnitude, ERK: 1 of 2 trainings on the test split" in report.stdout
    assert picture.exists()
