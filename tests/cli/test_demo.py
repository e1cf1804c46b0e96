"""The demo needs no file beside the package, and learns what it shows."""

import pytest
import torch
import yaml

from lightning_prune.cli.demo import SHAPES, ShapesClassifier, draw_shapes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_demo_trains_a_sparse_model_in_an_empty_folder(folder, prune_cli, capsys):
    small = ("--trainer.max_epochs", "2", "--data.images", "256")
    prune_cli("demo", *small, "--pruning.sparsity", "0.8")
    printed = capsys.readouterr().out
    assert "0.8000" in printed
    *_, tensorboard, report = printed.splitlines()
    assert tensorboard.endswith("tensorboard --logdir lightning_logs")
    given = "--config demo.yaml --data.images 256"
    assert f"lightning-prune report {given} --ckpt_path lightning_logs/version_0/" in report
    assert yaml.safe_load((folder / "demo.yaml").read_text())["model"].endswith("ShapesClassifier")


def test_a_config_that_was_changed_is_not_overwritten(folder, prune_cli, capsys):
    (folder / "demo.yaml").write_text("model: mine")
    with pytest.raises(SystemExit) as end:
        prune_cli("demo")
    assert end.value.code == 2
    assert "write: lightning-prune fit --config demo.yaml" in capsys.readouterr().err
    assert (folder / "demo.yaml").read_text() == "model: mine"


def test_the_drawn_shapes_depend_on_the_seed_alone():
    images, shapes = draw_shapes(64, noise=0.5, seed=0).tensors
    assert images.shape == (64, 1, 16, 16)
    assert set(shapes.tolist()) == set(range(len(SHAPES)))
    assert torch.equal(images, draw_shapes(64, noise=0.5, seed=0).tensors[0])
    assert not torch.equal(images, draw_shapes(64, noise=0.5, seed=1).tensors[0])


def test_without_noise_each_shape_has_pixels_of_two_values():
    images, shapes = draw_shapes(64, noise=0.0, seed=0).tensors
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert images.flatten(1).sum(dim=1).min() >= 5
    assert ShapesClassifier()(images).shape == (64, len(SHAPES))
    assert len(shapes) == 64
