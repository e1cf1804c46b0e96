"""Trainings in Ultralytics itself, each in a process of its own: ``python -m ... model folder``."""

import sys
from contextlib import suppress
from pathlib import Path

import onnx
import onnxruntime
import torch
import torchvision
from onnx import numpy_helper
from ultralytics import YOLO
from ultralytics.utils.nms import TorchNMS

from examples.shapes_data import ShapesDataModule, write_shapes
from lightning_prune import PolynomialSchedule, Sparsity
from lightning_prune.integrations.ultralytics import PruningYoloCallbacks
from tests.hooks import hooks

SIZE = 64
OPTIONS = {"imgsz": SIZE, "batch": 8, "nbs": 16, "nms": False, "plots": False, "warmup_epochs": 1}


def prune(model, folder, *, watch, epochs, **options):
    """Train with pruning to the last step; call ``watch`` after each validation."""
    pruning = PruningYoloCallbacks(sparsity=0.9, schedule=PolynomialSchedule(begin=0.0, end=1.0))
    pruning.add_to(model)
    model.add_callback("on_fit_epoch_end", lambda trainer: watch(trainer, pruning))
    data = write_shapes(folder / "shapes", ShapesDataModule(SIZE, 16, 16))
    places = {"data": data, "project": folder, "name": "train"}
    with suppress(KeyboardInterrupt):
        model.train(epochs=epochs, **places, **OPTIONS, **options)
    assert not hooks(model.trainer.optimizer)
    return pruning


def interrupt_and_resume(name, folder):
    seen = []

    def watch(trainer, pruning):
        parameters = dict(trainer.ema.ema.named_parameters())
        assert not any(parameters[name][~mask].any() for name, mask in pruning.masks.items())
        seen.append((trainer.epoch, pruning.pruner.steps[0], pruning.sparsity))
        if trainer.epoch == 1 and not trainer.resume:
            raise KeyboardInterrupt

    prune(YOLO(f"{name}.yaml"), folder, watch=watch, epochs=3)
    weights = folder / "train" / "weights"
    assert 0 < seen[-1][2] < 0.9
    pruning = prune(YOLO(weights / "last.pt"), folder, watch=watch, epochs=3, resume=True)
    assert [epoch for epoch, _, _ in seen[:3]] == [0, 1, 2]
    assert seen[2][1] > seen[1][1] > 0  # the count of steps goes on
    assert round(seen[2][2], 4) == 0.9
    curve = (folder / "train" / "results.csv").read_text().splitlines()
    assert curve[0].split(",")[-2:] == ["sparsity", "sparsity_target"]
    assert round(float(curve[-1].split(",")[-2]), 4) == 0.9
    return pruning


def train_for_an_epoch(name, folder):
    return prune(YOLO(f"{name}.yaml"), folder, watch=lambda trainer, pruning: None, epochs=1)


def compare_export(folder, pruning):
    """Export ``best.pt`` as ``yolo export`` does; compare zeros and outputs."""
    file = folder / "train" / "weights" / "best.pt"
    zeros = Sparsity()
    zeros.update(YOLO(file).model)
    assert round(float(zeros.compute()), 4) == round(pruning.sparsity, 4) == 0.9
    exported = YOLO(file).export(format="onnx", imgsz=SIZE, simplify=False)
    tensors = [numpy_helper.to_array(tensor) for tensor in onnx.load(exported).graph.initializer]
    weights = [tensor for tensor in tensors if tensor.ndim == 4]
    sparsity = sum((w == 0).sum() for w in weights) / sum(w.size for w in weights)
    assert sparsity > 0.88  # of the head that is exported
    net = YOLO(file).model.float().eval()
    net.end2end = False  # all places of the grid, as in the file
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(images)[0]
    session = onnxruntime.InferenceSession(exported)
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert difference < 1e-4


if __name__ == "__main__":
    if not hasattr(torch.ops.torchvision, "nms"):  # beside the CPU build of torch
        torchvision.ops.nms = TorchNMS.nms
    name, folder = sys.argv[1], Path(sys.argv[2])
    run = interrupt_and_resume if name == "yolo26n" else train_for_an_epoch
    compare_export(folder, run(name, folder))
