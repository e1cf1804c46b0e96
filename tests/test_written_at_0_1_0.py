"""Files of version 0.1.0 load, resume and end as they did then; `make.py` beside them wrote them.

Float weights are not compared: processors round differently. Masks, counts and steps are exact.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_prune import Pruner, adopt, load_sparse
from lightning_prune.cli import main
from tests.written_at_0_1_0.trainings import (
    EPOCHS,
    FITS,
    SAVED_AFTER,
    STEPS,
    TRAININGS,
    Batches,
    Classifier,
    callbacks,
    counts,
    digests,
    numbers,
    unpacked,
)

FOLDER = Path(__file__).parent / "written_at_0_1_0"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
BY_MODULE = "by_module"  # its class paths name modules, which were never public
CONFIGS = sorted({path.stem for path in (FOLDER / "configs").glob("*.yaml")} - {BY_MODULE})
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # it was a temporary one


def state_in(checkpoint):
    return checkpoint["callbacks"]["PruningCallback"]


def assert_same(ones, others):
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        assert torch.equal(one, others[name]), name


def found(pruner):
    return {"steps": pruner.steps, "sparsity": pruner.sparsity, "kept": counts(pruner.masks)}


# -- the state of a Pruner -------------------------------------------------------------------------


@pytest.fixture(params=TRAININGS)
def resumed(request):
    """A training of a plain loop, with all that its file holds."""
    training = TRAININGS[request.param]
    states = torch.load(FOLDER / "pruners" / f"{request.param}.pt", weights_only=True)
    net = training.make()
    net.load_state_dict(states["model"])
    optimizers = training.optimize(net)
    for optimizer, state in zip(optimizers, states["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    pruner = Pruner(**training.recipe)
    pruner.load_state_dict(states["pruner"])
    training.attach(pruner, net, optimizers)
    return request.param, states["pruner"], net, optimizers, pruner


def test_a_pruner_resumes_with_the_masks_steps_and_sums_of_its_state(resumed):
    name, state, net, _, pruner = resumed
    assert "version" not in state
    masks = unpacked(state)
    assert_same(pruner.masks, masks)
    assert found(pruner) == EXPECTED["pruners"][name]["saved"]
    for parameter, mask in masks.items():
        assert not net.get_parameter(parameter)[~mask].any()
    again = pruner.state_dict()
    assert_same(again["masks"], state["masks"])
    for tensor, observed in state["observed"].items():
        assert_same(again["observed"][tensor], observed)


def test_a_resumed_pruner_ends_with_the_counts_of_the_first_run(resumed):
    name, _, net, optimizers, pruner = resumed
    TRAININGS[name].train(net, optimizers, pruner, range(SAVED_AFTER, STEPS))
    pruner.detach()
    assert found(pruner) == EXPECTED["pruners"][name]["final"]


# -- Lightning's checkpoints -----------------------------------------------------------------------


class Start(Callback):
    """Keeps the masks and the steps that a training starts with."""

    def __init__(self, pruning):
        self.pruning = pruning

    def on_train_start(self, trainer, pl_module):
        self.masks = {name: mask.clone() for name, mask in self.pruning.masks.items()}
        self.steps = self.pruning.pruner.steps


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_a_fit_resumes_with_the_masks_and_ends_with_the_counts_of_the_first_run(name, tmp_path):
    path = FOLDER / "fits" / f"{name}.ckpt"
    pruning, *others = callbacks(name, tmp_path)
    start = Start(pruning)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        callbacks=[pruning, *others, start],
        enable_checkpointing=name == "watched",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Classifier(), Batches(), ckpt_path=path, weights_only=True)
    state = state_in(torch.load(path, weights_only=True))
    expected = EXPECTED["fits"][name]
    assert_same(start.masks, unpacked(state))
    assert start.steps == state["steps"] == expected["saved"]["steps"]
    assert counts(start.masks) == expected["saved"]["kept"]
    assert found(pruning.pruner) == expected["final"]


@pytest.mark.parametrize("path", sorted((FOLDER / "fits").iterdir()), ids=lambda p: p.stem)
def test_a_checkpoint_has_no_version_and_loads_into_the_plain_module(path):
    checkpoint = torch.load(path, weights_only=True)
    assert "version" not in state_in(checkpoint)
    module = Classifier()
    module.load_state_dict(checkpoint["state_dict"])
    for name, mask in unpacked(state_in(checkpoint)).items():
        assert not module.get_parameter(name)[~mask].any()


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run ``lightning-prune`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning-prune", *map(str, arguments)])
        main()

    return run


def config(name):
    return FOLDER / "configs" / f"{name}.yaml"


def last_kept(folder):
    last = max(folder.glob("**/*.ckpt"), key=lambda path: path.stat().st_mtime)
    return counts(unpacked(state_in(torch.load(last, weights_only=True))))


def assert_holds(new, old):
    """Compare what an older config says: a newer one may say more, or name a class elsewhere."""
    if isinstance(old, dict) and "class_path" in old:
        assert new["class_path"].rpartition(".")[2] == old["class_path"].rpartition(".")[2]
        assert_holds(new.get("init_args", {}), old.get("init_args", {}))
    elif isinstance(old, dict):
        for key, value in old.items():
            assert_holds(new[key], value)
    elif isinstance(new, dict):  # the older one names a class alone
        assert new["class_path"].rpartition(".")[2] == old.rpartition(".")[2]
    else:
        assert new == old


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_understood_as_it_was(name, command, capsys):
    with pytest.raises(SystemExit) as end:
        command("fit", "--config", config(name), "--print_config")
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    old = yaml.safe_load(config(name).read_text())
    for part in ("model", "data"):
        assert_holds(printed[part], old[part])
    pairs = zip(printed["trainer"]["callbacks"], old["trainer"]["callbacks"], strict=True)
    for callback, callback_before in pairs:
        assert_holds(callback, callback_before)


def test_a_config_with_class_paths_of_former_modules_names_the_cure(command, capsys):
    with pytest.raises(SystemExit):
        command("fit", "--config", config(BY_MODULE))
    message = capsys.readouterr().err.splitlines()[-1]
    assert "got its former module 'schedules'; import the name from lightning_prune" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_to_the_counts_of_the_first_run(name, command, tmp_path):
    command("fit", "--config", config(name))
    assert last_kept(tmp_path) == EXPECTED["configs"][name]["final"]["kept"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe"), [("command", "movement"), ("pruned", "lamp")])
def test_a_checkpoint_of_the_command_is_trained_on(name, recipe, command, tmp_path):
    path = FOLDER / "fits" / f"{name}.ckpt"
    command("fit", "--config", config(recipe), "--ckpt_path", path)
    assert last_kept(tmp_path) == EXPECTED["fits"][name]["final"]["kept"]


# -- what is deployed ------------------------------------------------------------------------------


def test_a_shrunk_checkpoint_is_adopted():
    module = Classifier()
    adopt(module, torch.load(FOLDER / "shrunk.ckpt", weights_only=True))
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == EXPECTED["shrunk"]["shapes"]
    assert module(numbers(16, 8)).shape == (16, 4)


@pytest.mark.slow
def test_a_shrunk_checkpoint_is_validated_by_the_command(command, capsys):
    command("validate", "--config", config("channels"), "--ckpt_path", FOLDER / "shrunk.ckpt")
    assert "val_acc" in capsys.readouterr().out


def test_a_sparse_file_loads_bit_for_bit():
    weights = load_sparse(FOLDER / "sparse.safetensors")
    assert digests(weights) == EXPECTED["sparse"]["digests"]
    Classifier().load_state_dict(weights)


# -- the files -------------------------------------------------------------------------------------


def test_every_file_is_expected_and_all_are_small():
    stems = {
        kind: {path.stem for path in (FOLDER / kind).iterdir()}
        for kind in ("pruners", "fits", "configs")
    }
    assert stems == {kind: set(EXPECTED[kind]) for kind in stems}
    assert set(TRAININGS) == stems["pruners"]
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 300_000
