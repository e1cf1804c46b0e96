"""Write the files of this folder, as version 0.1.0 writes them.

It was run once, at commit c871c24, and must not be run on a later one: the files show that later
code reads what that commit wrote. To repeat it::

    git worktree add /tmp/c871c24 c871c24
    cp -r tests/written_at_0_1_0 /tmp/c871c24/tests/
    cd /tmp/c871c24
    PYTHONPATH=$PWD OMP_NUM_THREADS=1 python -m tests.written_at_0_1_0.make

It writes:

- ``pruners/*.pt``: a `Pruner`'s state after 6 of 12 steps, with those of network and optimizers;
- ``fits/*.ckpt``: Lightning's checkpoints after 8 of 20 steps; ``command.ckpt`` and
  ``pruned.ckpt`` come from ``lightning-prune fit`` and ``lightning-prune prune``;
- ``configs/*.yaml``: the ``config.yaml`` that ``lightning-prune fit`` saved, letter by letter;
  ``by_module.yaml`` alone was written by hand, with class paths of modules;
- ``shrunk.ckpt`` and ``sparse.safetensors``: the files of ``lightning-prune shrink`` and
  ``lightning-prune export --format sparse``;
- ``expected.json``: what each training had at that moment, and what it had at its end.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_prune import Pruner, load_sparse
from tests.written_at_0_1_0.trainings import (
    EPOCHS,
    FITS,
    SAVED_AFTER,
    SAVED_IN_FIT,
    STEPS,
    TRAININGS,
    Batches,
    Classifier,
    Training,
    callbacks,
    counts,
    digests,
    unpacked,
)

FOLDER = Path(__file__).parent
PRUNING = "lightning_prune.PruningCallback"
CONFIGS: dict[str, dict[str, Any]] = {
    "gradual": {
        "sparsity": 0.8,
        "schedule": {"class_path": "PolynomialSchedule", "init_args": {"begin": 0.1, "end": 0.7}},
        "allocation": {"class_path": "ERKAllocation", "init_args": {"scale": 0.5}},
        "criterion": "MagnitudeCriterion",
        "pattern": "UnstructuredPattern",
    },
    "taylor": {
        "sparsity": {"*": 0.75, "net.0": 0.5},
        "schedule": {"class_path": "CosineSchedule", "init_args": {"begin": 0.2, "end": 0.8}},
        "allocation": "UniformAllocation",
        "criterion": "TaylorCriterion",
        "pattern": {"class_path": "UnstructuredPattern", "init_args": {"per_row": True}},
    },
    "fisher": {
        "sparsity": 0.5,
        "schedule": {
            "class_path": "ExponentialSchedule",
            "init_args": {"begin": 1, "end": 3, "every": 1, "unit": "epoch", "rate": 2.0},
        },
        "allocation": "GlobalAllocation",
        "criterion": "FisherCriterion",
        "pattern": {"class_path": "BlockPattern", "init_args": {"shape": [4, 2]}},
    },
    "movement": {
        "sparsity": {"*": 0.9, "net.3": None},
        "schedule": {
            "class_path": "PolynomialSchedule",
            "init_args": {"begin": 2, "end": 12, "every": 2, "unit": "step", "power": 1.0},
        },
        "allocation": "GlobalAllocation",
        "criterion": "MovementCriterion",
    },
    "lamp": {"allocation": "LAMPAllocation", "keep_zeros": True},
    "wanda": {
        "sparsity": 0.5,
        "schedule": {"class_path": "OneShotSchedule", "init_args": {"end": 0.5}},
        "criterion": "WandaCriterion",
        "pattern": {"class_path": "NMPattern", "init_args": {"n": 2, "m": 4}},
    },
    "rigl": {
        "sparsity": 0.75,
        "schedule": {"class_path": "OneShotSchedule", "init_args": {"end": 0}},
        "criterion": "GradientCriterion",
        "regrow": {"criterion": "GradientCriterion", "share": 0.5},
    },
    "set": {
        "sparsity": 0.75,
        "schedule": {"class_path": "OneShotSchedule", "init_args": {"end": 0}},
        "regrow": {
            "criterion": {"class_path": "RandomCriterion", "init_args": {"seed": 3}},
            "schedule": {"class_path": "CosineSchedule", "init_args": {"begin": 0.0, "end": 0.6}},
            "first": "MagnitudeCriterion",
        },
    },
    "lottery_ticket": {
        "sparsity": 0.657,
        "schedule": {
            "class_path": "MultiStepSchedule",
            "init_args": {"milestones": [0.25, 0.5, 0.75], "share": 0.3},
        },
        "allocation": "GlobalAllocation",
        "rewind": {"to": 2, "what": "learning_rate", "optimizer": "reset"},
    },
    "channels": {
        "sparsity": 0.5,
        "pattern": {"class_path": "ChannelPattern", "init_args": {"round_to": 4, "scope": "all"}},
    },
}
BESIDE: dict[str, list[dict[str, Any]]] = {
    "gradual": [
        {
            "class_path": "lightning_prune.SparsityMonitor",
            "init_args": {"quality": "val_acc", "histograms_every": None},
        },
        {
            "class_path": "lightning_prune.SparsityCheckpoint",
            "init_args": {"monitor": "val_acc", "mode": "max", "save_last": True, "sparsity": 0.5},
        },
    ],
    "lottery_ticket": [
        {
            "class_path": "lightning_prune.DistillationCallback",
            "init_args": {"weight": 0.5, "temperature": 2.0, "features": {"net.0": 0.1}},
        }
    ],
    "movement": [
        {
            "class_path": "ModelCheckpoint",
            "init_args": {"every_n_train_steps": SAVED_IN_FIT, "save_top_k": -1},
        }
    ],
}


class SaveAndGoOn(Callback):
    """Writes a checkpoint after a step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == SAVED_IN_FIT and not self.path.exists():
            trainer.save_checkpoint(self.path)


def found(pruner: Pruner) -> dict[str, Any]:
    """Return what later code must find again."""
    return {"steps": pruner.steps, "sparsity": pruner.sparsity, "kept": counts(pruner.masks)}


def write_pruner(name: str, training: Training) -> dict[str, Any]:
    net = training.make()
    optimizers = training.optimize(net)
    pruner = Pruner(**training.recipe)
    training.attach(pruner, net, optimizers)
    training.train(net, optimizers, pruner, range(SAVED_AFTER))
    saved = found(pruner)
    states = {
        "pruner": pruner.state_dict(),
        "model": net.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(states, FOLDER / "pruners" / f"{name}.pt")
    training.train(net, optimizers, pruner, range(SAVED_AFTER, STEPS))
    pruner.detach()
    return {"saved": saved, "final": found(pruner)}


def write_checkpoint(name: str, folder: Path) -> dict[str, Any]:
    pruning, *others = callbacks(name, folder)
    path = FOLDER / "fits" / f"{name}.ckpt"
    path.unlink(missing_ok=True)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=[pruning, *others, SaveAndGoOn(path)],
        enable_checkpointing=name == "watched",
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(Classifier(), Batches())
    return {"saved": of_state(path), "final": found(pruning.pruner)}


def of_state(path: Path) -> dict[str, Any]:
    """Return what later code must find again, from the masks in a checkpoint."""
    state = torch.load(path, weights_only=True)["callbacks"]["PruningCallback"]
    masks = unpacked(state)
    return {"steps": state["steps"], "kept": counts(masks)}


def run(folder: Path, *arguments: str) -> None:
    command = Path(sys.executable).with_name("lightning-prune")
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])}
    subprocess.run([command, *arguments], cwd=folder, env=environment, check=True)


def write_config(name: str, folder: Path) -> dict[str, Any]:
    config = {
        "seed_everything": 1,
        "trainer": {
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "."}},
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "callbacks": [
                {"class_path": PRUNING, "init_args": CONFIGS[name]},
                *BESIDE.get(name, []),
            ],
        },
        "model": "tests.written_at_0_1_0.trainings.Classifier",
        "data": "tests.written_at_0_1_0.trainings.Batches",
    }
    (folder / "given.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run(folder, "fit", "--config", "given.yaml")
    saved = FOLDER / "configs" / f"{name}.yaml"
    saved.write_bytes((folder / "lightning_logs/version_0/config.yaml").read_bytes())
    return {"final": of_state(last_checkpoint(folder))}


def last_checkpoint(folder: Path) -> Path:
    return max(folder.glob("**/*.ckpt"), key=lambda path: path.stat().st_mtime)


# -- files of the command --------------------------------------------------------------------------


def take_command(folder: Path) -> dict[str, Any]:
    """Keep the checkpoint that ``lightning-prune fit`` has written on its way."""
    (middle,) = folder.glob(f"**/*step={SAVED_IN_FIT}.ckpt")
    path = FOLDER / "fits" / "command.ckpt"
    path.write_bytes(middle.read_bytes())
    return {"saved": of_state(path), "final": of_state(last_checkpoint(folder))}


def take_pruned(folder: Path) -> dict[str, Any]:
    """Prune a dense checkpoint without training, and train on from it."""
    dense = yaml.safe_load((folder / "given.yaml").read_text())
    dense["trainer"]["callbacks"][0]["init_args"] = {"sparsity": 0.0}
    (folder / "dense.yaml").write_text(yaml.safe_dump(dense))
    run(folder, "fit", "--config", "dense.yaml")
    path = FOLDER / "fits" / "pruned.ckpt"
    options = ("--ckpt_path", str(last_checkpoint(folder)), "--output", str(path))
    path.unlink(missing_ok=True)
    run(folder, "prune", "--config", "given.yaml", *options)
    run(folder, "fit", "--config", "given.yaml", "--ckpt_path", str(path))
    return {"saved": of_state(path), "final": of_state(last_checkpoint(folder))}


def take_sparse(folder: Path) -> dict[str, Any]:
    """Write the weights without their zeros."""
    path = FOLDER / "sparse.safetensors"
    path.unlink(missing_ok=True)
    options = ("--ckpt_path", str(last_checkpoint(folder)), "--format", "sparse")
    run(folder, "export", "--config", "given.yaml", *options, "--output", str(path))
    return {"digests": digests(load_sparse(path))}


def take_shrunk(folder: Path) -> dict[str, Any]:
    """Write the model without its zero channels."""
    path = FOLDER / "shrunk.ckpt"
    path.unlink(missing_ok=True)
    options = ("--ckpt_path", str(last_checkpoint(folder)), "--output", str(path))
    run(folder, "shrink", "--config", "given.yaml", *options)
    state = torch.load(path, weights_only=True)["state_dict"]
    return {"shapes": {name: list(tensor.shape) for name, tensor in state.items()}}


def main() -> None:
    """Write all files."""
    torch.set_num_threads(1)
    for name in ("pruners", "fits", "configs"):
        (FOLDER / name).mkdir(exist_ok=True)
    expected: dict[str, Any] = {"pruners": {}, "fits": {}, "configs": {}}
    for name, training in TRAININGS.items():
        expected["pruners"][name] = write_pruner(name, training)
    for name in FITS:
        with tempfile.TemporaryDirectory() as folder:
            expected["fits"][name] = write_checkpoint(name, Path(folder))
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            expected["configs"][name] = write_config(name, Path(folder))
            if name == "movement":
                expected["fits"]["command"] = take_command(Path(folder))
            if name == "lamp":
                expected["fits"]["pruned"] = take_pruned(Path(folder))
            if name == "gradual":
                expected["sparse"] = take_sparse(Path(folder))
            if name == "channels":
                expected["shrunk"] = take_shrunk(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), "fit", "--config", str(FOLDER / "configs" / "by_module.yaml"))
        found_at_end = of_state(last_checkpoint(Path(folder)))
        expected["configs"]["by_module"] = {"final": found_at_end}
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
