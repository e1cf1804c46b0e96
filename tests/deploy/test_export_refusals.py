"""Modules and examples that have no ONNX file."""

import sys

import pytest
import torch
from torch import nn

from lightning_prune import export_onnx
from tests.deploy.pruned import pruned


class Noisy(nn.Module):
    def forward(self, inputs):
        return inputs + torch.rand_like(inputs)


class Refilled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4))

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.weight + 1)


class Undecided(nn.Module):
    def forward(self, inputs):
        return inputs if inputs.sum() > 0 else -inputs


class Eigenvalues(nn.Module):
    def forward(self, inputs):
        return torch.linalg.eigh(inputs @ inputs.mT)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Noisy(), r"need answers within tolerance=0\.0001 .* got a difference=.* in output 0"),
        (pruned(Refilled()), r"need the 14 zeros of the weights in the file, got zeros=0"),
        (
            Undecided(),
            r"need a module that torch.export can trace, got a Undecided: \w+: Could",
        ),
        (Eigenvalues(), r"need operators that ONNX has, got a module of others: \w+: No ONNX"),
    ],
)
def test_what_cannot_be_exported_rightly_is_refused(module, message, tmp_path, capfd):
    with pytest.raises(ValueError, match=message):
        export_onnx(module, tmp_path / "net.onnx", example=torch.rand(2, 4, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("example", "inputs", "message"),
    [
        ((torch.rand(1, 2), 3), [], "need an example that forward takes, got too many positional"),
        (torch.rand(1, 2), [torch.rand(5, 3, 2)], r"\[\[1, 2\]\], got \[\[5, 3, 2\]\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(example, inputs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(nn.Linear(2, 2), tmp_path / "net.onnx", example=example, inputs=inputs)


def test_an_example_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"got example=None; set self\.example_input_array"):
        export_onnx(nn.Linear(2, 2), tmp_path / "net.onnx")


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_its_extra(library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"need {library} .*lightning-prune\[export\]"):
        export_onnx(nn.Linear(2, 2), tmp_path / "net.onnx", example=torch.rand(1, 2))
