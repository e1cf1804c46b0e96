"""Integrations import without the library of the trainer, and name the extra when they are used."""

import importlib
import sys

import pytest
from torch import nn


@pytest.mark.parametrize(
    ("library", "name", "given"),
    [
        ("transformers", "PruningTrainerCallback", {"sparsity": 0.8}),
        ("peft", "merge_sparse", {"model": nn.Identity()}),
    ],
    ids=["transformers", "peft"],
)
def test_an_integration_imports_without_the_library_and_names_the_extra(
    monkeypatch, library, name, given
):
    place = f"lightning_prune.integrations.{library}"
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, place, None)
    del sys.modules[place]
    integration = importlib.import_module(place)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'lightning-prune\[{library}\]'"):
        getattr(integration, name)(**given)
