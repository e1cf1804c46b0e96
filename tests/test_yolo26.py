"""The examples with YOLO26; they need Ultralytics, which is no dependency of this package."""

from importlib.util import find_spec

import pytest
import torch

from examples.shapes_data import SHAPES, draw_shapes, to_batch
from tests.commands import run_python

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
    sparsity = float(row.split("|")[4])
    assert sparsity == pytest.approx(0.9, abs=0.02)  # of the head that is deployed
    assert {"gradual.json", "gradual.onnx", "gradual.png"} <= {p.name for p in tmp_path.iterdir()}


@needs_ultralytics
@pytest.mark.slow
def test_half_of_the_channels_of_yolo26_are_removed(tmp_path):
    options = ("--epochs", "2", "--images", "32", "--size", "64", "--no-latency")
    printed = run(tmp_path, "examples.yolo26", "--recipes", "channels", *options)
    row = next(line for line in reversed(printed.splitlines()) if "channels" in line)
    assert int(row.split("|")[5].replace(",", "")) < 1_000_000  # of 2,375,421 dense ones
    assert "removing the pruned channels takes away 0.6" in printed


@needs_ultralytics
@pytest.mark.slow
def test_the_trainer_of_ultralytics_saves_zeros(tmp_path):
    options = ("--epochs", "3", "--images", "32", "--size", "64")
    printed = run(tmp_path, "examples.yolo26_ultralytics", *options)
    assert "sparsity of the masks 0.9000" in printed
    for name in ("best", "last"):
        assert f"sparsity of {name}.pt 0.9000, with batch normalization folded in 0.9" in printed
