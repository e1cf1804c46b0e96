"""Commands read the folder of a distributed checkpoint as the file of a whole checkpoint."""

import re
import warnings

import pytest
import torch
from torch.distributed import checkpoint as distributed

from lightning_prune.deploy.checkpoints import read_lightning_checkpoint
from tests.cli.modules import CLASSIFIER

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_checkpointing: false
  callbacks:
    - class_path: lightning_prune.PruningCallback
      init_args: {sparsity: 0.5}
model: sharded.Model
data: sharded.Data
"""

MONITOR = ["--monitor", "val_acc", "--mode", "max", "--sparsities", "[0.5]", "--plot", "false"]
TOLERANCE = [*MONITOR, "--tolerance", "0.9", "--trials", "1", "--statistics", "1"]


@pytest.fixture
def folder(project):
    """Write a checkpoint as a file and as the folder that Lightning writes with FSDP2."""
    folder = project("sharded", CLASSIFIER, CONFIG)
    from sharded import Model

    model = Model()
    with torch.no_grad():
        for parameter in model.net[:2].parameters():
            parameter[4:] = 0
        model.net[3].weight[:, 4:] = 0
    others = {"pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 0}
    torch.save({"state_dict": model.state_dict(), **others}, "file.ckpt")
    with warnings.catch_warnings():  # a single process writes
        warnings.simplefilter("ignore")
        distributed.save(
            {"state_dict": model.state_dict()},
            storage_writer=distributed.FileSystemWriter("folder.ckpt"),
            no_dist=True,
        )
    torch.save(others, "folder.ckpt/meta.pt")
    return folder


@pytest.mark.works_with(
    "Replicas and shards", "Commands on the folder of a distributed checkpoint, as on a file"
)
@pytest.mark.parametrize(
    ("command", "written"),
    [
        (["prune", "--output", "out.ckpt"], "out.ckpt"),
        (["reestimate", "--output", "out.ckpt"], "out.ckpt"),
        (["shrink", "--output", "out.ckpt"], "out.ckpt"),
        (["search", *TOLERANCE, "--output", "out"], "out/search.ckpt"),
        (["sensitivity", *MONITOR, "--output", "out"], None),
        (["report", "--latency", "false"], None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_reads_a_folder_as_a_file(command, written, folder, prune_cli, capsys):
    found = []
    for name in ("file", "folder"):
        arguments = ["--config", "recipe.yaml", "--ckpt_path", f"{name}.ckpt"]
        prune_cli(command[0], *arguments, *command[1:])
        tables = re.findall(r"^[│┃].*$", capsys.readouterr().out, re.MULTILINE)
        weights = read_lightning_checkpoint(written)["state_dict"] if written else {}
        found.append((tables, {key: value.clone() for key, value in weights.items()}))
    (tables, weights), (others, of_folder) = found
    assert tables == others
    assert len(tables) > 1
    torch.testing.assert_close(weights, of_folder, rtol=0, atol=0)


@pytest.mark.parametrize("command", ["validate", "fit"])
def test_a_trainer_that_reads_no_folders_is_refused_with_the_remedy(
    command, folder, prune_cli, capsys
):
    with pytest.raises(SystemExit):
        prune_cli(command, "--config", "recipe.yaml", "--ckpt_path", "folder.ckpt")
    assert "the folder of a distributed checkpoint; name the strategy" in capsys.readouterr().err
