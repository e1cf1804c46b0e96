import pytest
import torch

from lightning_prune.models.torch_floors import TorchFloor


@pytest.mark.parametrize("floor", TorchFloor)
def test_an_older_torch_is_refused_by_name(floor, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.7.1+cu126")
    assert not floor.is_met
    version, purpose = floor.value
    message = f"^need torch>={version} to {purpose}, got torch==2.7.1.*; take another$"
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        floor.check("take another")


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0+cpu", "2.15.0a0", "3.0.0"])
def test_a_torch_from_the_floor_on_is_taken(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    for floor in TorchFloor:
        floor.check()
