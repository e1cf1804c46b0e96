"""The examples with YOLO26; they need Ultralytics, which is no dependency of this package."""

import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from examples.shapes_data import SHAPES, draw_shapes, to_batch
from tests.commands import run_python
from tests.hooks import hooks

needs_ultralytics = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="needs ultralytics; the README says how it was run"
)


def run(folder, *arguments):
    environment = {
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(folder),
        "COLUMNS": "120",
    }
    done = run_python("-m", *arguments, "--folder", str(folder), environment=environment)
    return done.stdout


def test_boxes_enclose_what_is_drawn():
    images, objects = draw_shapes(count=8, size=96, seed=0).tensors
    for image, there in zip(images, objects, strict=True):
        for present, shape, *box in there.tolist():
            x, y, width, height = (96 * value for value in box)
            left, right = round(x - width / 2), round(x + width / 2)
            top, bottom = round(y - height / 2), round(y + height / 2)
            if present and SHAPES[int(shape)] == "square":
                inside = image[:, top:bottom, left:right]
                assert (inside == inside[:, :1, :1]).all()
                around = image[:, max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1]
                assert (around == inside[:, :1, :1]).all(0).sum() == inside[0].numel()
            elif present:
                assert (image[:, round(y), round(x)] == image[:, round(y) + 1, round(x)]).all()


def test_a_batch_lists_the_objects_image_by_image():
    dataset = draw_shapes(count=5, size=64, seed=0)
    batch = to_batch([dataset[3], dataset[4]])
    present = dataset.tensors[1][3:, :, 0].sum(1).int().tolist()
    assert batch["batch_idx"].tolist() == [0] * present[0] + [1] * present[1]
    assert torch.equal(batch["bboxes"][0], dataset[3][1][0, 2:])
    assert batch["cls"].shape == (sum(present), 1)


@needs_ultralytics
@pytest.mark.slow
def test_yolo26_is_pruned_exported_and_reported(tmp_path):
    options = ("--epochs", "2", "--images", "64", "--size", "64", "--no-latency")
    printed = run(tmp_path, "examples.yolo26", "--recipes", "gradual", *options)
    row = next(line for line in reversed(printed.splitlines()) if "gradual" in line)
    sparsity = float(row.split("│")[4])
    assert sparsity == pytest.approx(0.9, abs=0.02)  # of the head that is deployed
    assert {"gradual.json", "gradual.onnx", "gradual.png"} <= {p.name for p in tmp_path.iterdir()}


@needs_ultralytics
@pytest.mark.slow
def test_half_of_the_channels_of_yolo26_are_removed(tmp_path):
    options = ("--epochs", "2", "--images", "32", "--size", "64", "--no-latency")
    printed = run(tmp_path, "examples.yolo26", "--recipes", "channels", *options)
    row = next(line for line in reversed(printed.splitlines()) if "channels" in line)
    assert int(row.split("│")[5].replace(",", "")) < 1_000_000  # of 2,375,421 dense ones
    assert "removing the pruned channels takes away 0.6" in printed


@needs_ultralytics
@pytest.mark.slow
def test_the_trainer_of_ultralytics_saves_zeros(tmp_path):
    options = ("--epochs", "3", "--images", "32", "--size", "64")
    printed = run(tmp_path, "examples.yolo26_ultralytics", *options)
    assert "sparsity of the masks 0.9000" in printed
    for name in ("best", "last"):
        assert f"sparsity of {name}.pt 0.9000, with batch normalization folded in 0.9" in printed


@needs_ultralytics
@pytest.mark.slow
def test_the_trainer_of_ultralytics_resumes_sparse_and_its_average_is_pruned(tmp_path):
    run(tmp_path, "tests.test_yolo26")


def interrupt_and_resume(folder):
    from ultralytics import YOLO

    from examples.shapes_data import ShapesDataModule, write_shapes
    from examples.yolo26_ultralytics import UltralyticsPruning, sparsity
    from lightning_prune import PolynomialSchedule, Pruner

    data = write_shapes(folder / "shapes", ShapesDataModule(64, 32, 16))
    seen = []

    def train(weights, **arguments):
        pruner = Pruner(sparsity=0.9, schedule=PolynomialSchedule(begin=0.0, end=1.0))
        model = YOLO(weights)

        def pretend_that_a_dense_epoch_was_best(trainer):
            if trainer.epoch == 0:
                trainer.best_fitness = 1.0

        def check_average(trainer):
            parameters = dict(trainer.ema.ema.named_parameters())
            assert not any(parameters[name][~mask].any() for name, mask in pruner.masks.items())
            seen.append((trainer.epoch, pruner.steps[0], pruner.sparsity))
            if trainer.epoch == 1 and "resume" not in arguments:
                raise KeyboardInterrupt

        model.add_callback("on_train_epoch_end", pretend_that_a_dense_epoch_was_best)
        UltralyticsPruning(pruner).add_to(model)
        model.add_callback("on_fit_epoch_end", check_average)
        places = {"data": data, "project": folder, "name": "train"}
        options = {"imgsz": 64, "nms": False, "plots": False, "warmup_epochs": 1, "nbs": 32}
        with suppress(KeyboardInterrupt):
            model.train(epochs=3, **places, **options, **arguments)
        assert not hooks(model.trainer.optimizer)

    train("yolo26n.yaml")
    weights = folder / "train" / "weights"
    assert 0 < seen[-1][2] < 0.9
    train(weights / "last.pt", resume=True)
    assert [epoch for epoch, _, _ in seen[:3]] == [0, 1, 2]
    assert seen[2][1] > seen[1][1] > 0  # the count of steps goes on
    assert round(seen[2][2], 4) == 0.9
    for name in ("best", "last"):
        assert round(sparsity(YOLO(weights / f"{name}.pt").model), 4) == 0.9


if __name__ == "__main__":
    interrupt_and_resume(Path(sys.argv[-1]))
