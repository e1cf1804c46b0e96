"""The zoo of foreign models counts right, follows the advice of errors, and finds faults."""

import pytest
import torch
from torch import nn

from benchmarks.parts.zoo import trial as trials
from benchmarks.parts.zoo.trial import Trial, try_model


def build_network():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    return model, torch.randn(2, 3, 8, 8)


def test_a_sound_model_shows_no_fault_and_every_number():
    trial = try_model(build_network)
    assert not trial.faults
    assert not trial.refusals
    assert trial.parameters == 3 * 8 * 9 + 8 + 8 + 8 + 8 * 4 + 4
    assert trial.selected == (3 * 8 * 9 + 8 * 4) / trial.parameters
    assert trial.landing == 223 / 248  # round(248 * 0.1) are kept
    assert trial.two_four == "1"  # the error about 3 input channels leaves the first layer dense
    gone = 4 * (3 * 9 + 1 + 1 + 1 + 4)  # weights, bias, scale, shift, columns of 4 channels
    assert trial.removed == pytest.approx(dict.fromkeys(["inner", "all"], gone / trial.parameters))
    assert "-" not in trial.cells()
    assert len(trial.cells()) == len(Trial.headings())


def test_a_refusal_is_noted_and_is_no_fault():
    trial = try_model(lambda: (nn.Linear(4, 4), torch.randn(2, 4)))
    assert not trial.faults
    assert trial.cells()[4:7] == ("-", "-", "-")
    assert len(trial.refusals) == 2
    assert all("network output" in reason for reason in trial.refusals)


@pytest.mark.parametrize(
    ("shrink", "fault"),
    [
        (lambda model, example: nn.Sequential(model, nn.Softplus()), "the answers differ by"),
        (lambda model, example: model.missing, "shrink after scope='inner': AttributeError"),
    ],
    ids=["wrong", "refuses"],
)
def test_a_wrong_removal_is_a_fault(shrink, fault, monkeypatch):
    monkeypatch.setattr(trials, "shrink", shrink)
    faults = try_model(build_network).faults
    assert len(faults) == 2
    assert faults[0].startswith(fault)


def test_an_error_that_is_no_refusal_is_a_fault(monkeypatch):
    def attach(self, *args, **kwargs):
        raise KeyError("layer")

    monkeypatch.setattr(trials.Pruner, "attach", attach)
    trial = try_model(build_network)
    assert len(trial.faults) == 4
    assert trial.faults[0] == "UnstructuredPattern(per_row=False): KeyError: 'layer'"
