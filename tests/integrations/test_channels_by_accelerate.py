"""Channels on the shards of Accelerate, in a plain loop and in the Trainer of transformers."""

from importlib.util import find_spec

import pytest
import torch

from tests.commands import run_python
from tests.versions import needs_package

if not (find_spec("transformers") and find_spec("accelerate")):
    pytest.skip("needs lightning-prune[transformers]", allow_module_level=True)

from lightning_prune.integrations.transformers import PruningTrainerCallback
from tests.integrations import accelerate_loop, sharded_trainer
from tests.integrations.transformers_runs import BATCH, make_bert, make_trainer

SECTION = "Other trainers"
pytestmark = [pytest.mark.slow, needs_package("accelerate", "1.15")]  # what was tried


def run_on_two(module, folder, *ways):
    """Return what each of two processes has saved."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    run_python(*launch, "-m", module.__name__, folder, *ways, environment=environment)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_pruned_alike(masks, weights, found):
    """Compare with one process, whose gradients are summed, and so rounded, in another order."""
    assert masks.keys() == found["masks"].keys()
    for name, mask in masks.items():
        assert torch.equal(found["masks"][name], mask), name
        assert not found["weights"][name][~mask].any(), name
    for name, values in weights.items():
        torch.testing.assert_close(found["weights"][name], values, atol=1e-6, rtol=1e-5)


@pytest.mark.works_with(
    SECTION, "Accelerate, FSDP2: channels as in one process, resumed bit for bit"
)
def test_a_loop_on_shards_prunes_the_channels_of_one_process(tmp_path):
    found = run_on_two(accelerate_loop, tmp_path, "shards", "channels")
    net, pruner = accelerate_loop.train(
        tmp_path, recipe=accelerate_loop.CHANNELS, batch=2 * accelerate_loop.BATCH
    )
    masks = pruner.masks
    assert masks["0.bias"].sum() + masks["4.weight"].any(0).sum() == (8 + 20) // 2
    for each in found:
        assert_pruned_alike(masks, net.state_dict(), each)


@pytest.mark.works_with(
    SECTION,
    "Trainer of transformers, FSDP2: heads and units as in one process, resumed bit for bit",
)
def test_the_trainer_on_shards_prunes_the_heads_and_units_of_one_process(tmp_path):
    found = run_on_two(sharded_trainer, tmp_path, "channels")
    pruning = PruningTrainerCallback(table="off", **sharded_trainer.CHANNELS)
    trainer = make_trainer(
        tmp_path,
        pruning,
        model=make_bert(dropout=0.0),
        per_device_train_batch_size=2 * BATCH,
        logging_steps=100,
    )
    trainer.train()
    masks = pruning.masks
    for layer in ("bert.encoder.layer.0", "bert.encoder.layer.1"):
        assert masks[f"{layer}.attention.self.query.bias"].sum() == 2 * 4  # of 4 heads of 4
        assert masks[f"{layer}.intermediate.dense.bias"].sum() == 32 // 2
    for each in found:
        assert_pruned_alike(masks, trainer.model.state_dict(), each["SHARDED_STATE_DICT"])
