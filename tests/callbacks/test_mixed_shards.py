"""A distributed checkpoint that mixes two steps is refused, and no other checkpoint is."""

import shutil

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_prune import PruningCallback
from lightning_prune.tensors.bits import unpack_mask
from tests.callbacks.replicas import Net, Sharded, assert_pruned, loader, make_trainer, outcome

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


class Changed(Net):
    """Changes a weight while a checkpoint is loaded, on purpose or not."""

    def __init__(self, *, says_so=False):
        super().__init__()
        self.says_so = says_so

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"]["net.0.weight"][0] += 1
        if self.says_so:
            del checkpoint["callbacks"]["PruningCallback"]["digests"]


def train_shards(folder, epochs, ckpt_path=None, *, distributed=True, precision=None):
    """Train to an epoch and save; a resume may be refused, and then return the error."""
    strategy = ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=distributed
    )
    pruning, model = PruningCallback(sparsity=0.75), Sharded()
    trainer = make_trainer(folder, strategy, pruning, max_epochs=3, precision=precision)
    model.on_train_epoch_end = lambda: setattr(
        trainer, "should_stop", trainer.current_epoch + 1 == epochs
    )
    try:
        trainer.fit(model, loader(), ckpt_path=ckpt_path, weights_only=True)
    except ValueError as error:
        return str(error)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return outcome(pruning, model)


def save_two_steps(folder, two):
    two(train_shards, folder, 1)
    two(train_shards, folder, 2, folder / "1.ckpt")
    return folder / "1.ckpt", folder / "2.ckpt"


@pytest.mark.works_with(
    "Faults", "a distributed checkpoint whose overwriting was interrupted", refused=True
)
def test_shards_of_two_steps_are_refused_by_all_processes(two, tmp_path):
    first, second = save_two_steps(tmp_path, two)
    older = [path.name for path in sorted(first.glob("*.distcp"))]
    assert older == [path.name for path in sorted(second.glob("*.distcp"))]
    assert len(older) == 2
    for name in older:  # the overwriting ended after the first process, then before the last file
        shutil.copy(second / name, first / name)
        for error in two(train_shards, tmp_path, 3, first):
            assert "got others in 'net.0.weight', 'net.3.weight'" in error
            assert "of the checkpoint of steps [4]: a save into the same folder" in error
    shutil.copy(second / "meta.pt", first / "meta.pt")
    for masks, weights in two(train_shards, tmp_path, 3, first):
        assert_pruned(masks, weights)


@pytest.mark.parametrize(("saved", "now"), [(None, "bf16-true"), ("bf16-true", None)])
def test_a_resume_in_another_precision_is_not_refused(saved, now, two, tmp_path):
    two(_train_in, tmp_path, 1, None, saved)
    for masks, weights in two(_train_in, tmp_path, 3, tmp_path / "1.ckpt", now):
        assert_pruned(masks, weights)


def _train_in(folder, epochs, ckpt_path, precision):
    return train_shards(folder, epochs, ckpt_path, precision=precision)


def _save_whole(folder):
    return train_shards(folder, 1, distributed=False)


def test_one_process_compares_the_weights_of_a_sharded_run_unless_told_not_to(two, tmp_path):
    two(_save_whole, tmp_path)

    def resume(model):
        pruning = PruningCallback(sparsity=0.75)
        trainer = make_trainer(tmp_path, "auto", pruning, max_epochs=3)
        trainer.fit(model, loader(), ckpt_path=tmp_path / "1.ckpt", weights_only=True)
        assert pruning.sparsity == pytest.approx(0.75, abs=1e-3)
        return pruning

    saved = torch.load(tmp_path / "1.ckpt", weights_only=True)["callbacks"]["PruningCallback"]
    assert saved["digests"].keys() == {"net.0.weight", "net.3.weight"}
    pruning = resume(Net())
    assert "digests" not in pruning.state_dict()  # one process writes a single file
    with pytest.raises(ValueError, match=r"got others in 'net\.0\.weight' of"):
        resume(Changed())
    resume(Changed(says_so=True))


def test_masks_that_are_loaded_by_hand_go_with_any_weights(two, tmp_path):
    two(_save_whole, tmp_path)
    checkpoint = torch.load(tmp_path / "1.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["PruningCallback"]
    pruning = PruningCallback(sparsity=0.75)
    load = LambdaCallback(setup=lambda trainer, pl_module, stage: pruning.load_state_dict(state))
    make_trainer(tmp_path, "auto", pruning, load).fit(Net(), loader())
    saved = unpack_mask(state["masks"]["net.0.weight"], state["shapes"]["net.0.weight"])
    assert not (pruning.masks["net.0.weight"] & ~saved).any()
