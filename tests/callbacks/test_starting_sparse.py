import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_prune import NMPattern, PolynomialSchedule, PruningCallback
from tests.callbacks.conftest import PRUNABLE, Classifier, Record, zeros

SECTION = "Starting sparse"


@pytest.fixture
def sparse_checkpoint(make_model, make_trainer, loader, tmp_path):
    """Return the path of a checkpoint with half of the weights pruned."""
    trainer = make_trainer(PruningCallback(sparsity=0.5))
    trainer.fit(make_model(), loader)
    trainer.save_checkpoint(tmp_path / "sparse.ckpt")
    return tmp_path / "sparse.ckpt"


def load(path):
    model = Classifier.load_from_checkpoint(path, weights_only=True)
    return model, {i: model.net[i].weight.detach() == 0 for i in (0, 2)}


@pytest.mark.works_with(SECTION, "fine-tuning a sparse checkpoint: zeros stay zero")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_sparse_checkpoint_is_fine_tuned_with_its_zeros(
    optimizer, make_trainer, loader, sparse_checkpoint
):
    model, pruned = load(sparse_checkpoint)
    model.optimizer = optimizer
    dense = {i: model.net[i].weight.clone() for i in pruned}
    pruning = PruningCallback(sparsity=0.0, keep_zeros=True)
    record = Record(pruning)
    make_trainer(pruning, record).fit(model, loader)
    assert set(record.sparsities) == {0.5}
    for i, zero in pruned.items():
        assert torch.equal(model.net[i].weight == 0, zero)
        assert not torch.equal(model.net[i].weight, dense[i])


@pytest.mark.works_with(SECTION, "fine-tuning a sparse checkpoint: zeros stay zero")
def test_without_keep_zeros_they_grow_back(make_trainer, loader, sparse_checkpoint):
    model, _ = load(sparse_checkpoint)
    trainer = make_trainer(PruningCallback(sparsity=0.0))
    with pytest.warns(UserWarning, match=r"no mask says why: .*net\.0\.weight.*keep_zeros=T"):
        trainer.fit(model, loader)
    assert zeros(model) < PRUNABLE * 0.1


@pytest.mark.works_with(SECTION, "pruning a sparse checkpoint further, from where it is")
def test_a_sparse_checkpoint_is_pruned_further(make_trainer, loader, sparse_checkpoint):
    model, pruned = load(sparse_checkpoint)
    schedule = PolynomialSchedule(begin=0, end=0.75)
    pruning = PruningCallback(sparsity=0.8, keep_zeros=True, schedule=schedule)
    record = Record(pruning)
    make_trainer(pruning, record).fit(model, loader)
    assert record.sparsities == sorted(record.sparsities)
    assert record.sparsities[0] == 0.5  # the ramp starts below and waits for nothing
    assert record.sparsities[-1] == 0.8
    for i, zero in pruned.items():
        assert not model.net[i].weight[zero].any()


@pytest.mark.works_with(SECTION, "pruning a sparse checkpoint further, from where it is")
def test_a_sparse_checkpoint_can_go_on_to_two_of_four(make_trainer, loader, sparse_checkpoint):
    model, pruned = load(sparse_checkpoint)
    pruning = PruningCallback(sparsity=0.5, keep_zeros=True, pattern=NMPattern(n=2, m=4))
    make_trainer(pruning, Record(pruning)).fit(model, loader)
    for i, zero in pruned.items():
        kept = (model.net[i].weight != 0).reshape(-1, 4).sum(1)
        assert kept.max() == 2
        assert not model.net[i].weight[zero].any()


@pytest.mark.works_with(SECTION, "kept zeros with averaging, stop and resume")
def test_kept_zeros_outlive_averaging_and_resuming(
    make_trainer, make_model, loader, sparse_checkpoint, tmp_path
):
    model, pruned = load(sparse_checkpoint)
    average, pruning = EMAWeightAveraging(decay=0.9), PruningCallback(0.0, keep_zeros=True)
    trainer = make_trainer(average, pruning)
    trainer.fit(model, loader)
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    resumed = make_model(seed=1)
    average, pruning = EMAWeightAveraging(decay=0.9), PruningCallback(0.0, keep_zeros=True)
    make_trainer(average, pruning, Record(pruning), max_epochs=4).fit(
        resumed, loader, ckpt_path=tmp_path / "tuned.ckpt", weights_only=True
    )
    for i, zero in pruned.items():
        assert torch.equal(model.net[i].weight == 0, zero)
        assert torch.equal(resumed.net[i].weight == 0, zero)


@pytest.mark.works_with(
    SECTION, "a tensor of zeros only, which could never train: the error names it", refused=True
)
def test_a_tensor_of_zeros_is_refused_by_name(make_model, make_trainer, loader):
    model = make_model()
    torch.nn.init.zeros_(model.net[2].weight)
    with pytest.raises(ValueError, match=r"keep_zeros=True, got none in 'net\.2\.weight'"):
        make_trainer(PruningCallback(keep_zeros=True)).fit(model, loader)
