import io
import sys

import pytest
import torch
from torch import nn

from lightning_prune import ChannelPattern, Pruner, shrink
from lightning_prune.models.progress import note_progress, show_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    def open_it():
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return open_it


def test_a_stage_is_shown_in_a_bar_that_goes_at_the_end(open_terminal, monkeypatch):
    terminal = open_terminal()
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    with show_progress():
        note_progress("tracing", 1, 2)
        assert terminal.getvalue().rpartition("\r")[2].endswith("| 0/2")
        note_progress("tracing", 2, 2)
        note_progress("none", 0, 0)
        assert terminal.getvalue().rpartition("\r")[2].startswith("none |")
    assert terminal.getvalue().split("\r")[-2].strip() == ""
    assert terminal.getvalue().endswith("\r")


def test_nothing_is_shown_outside_of_the_block_or_without_a_terminal(
    open_terminal, capsys, monkeypatch
):
    terminal = open_terminal()
    note_progress("tracing", 1, 2)
    with pytest.raises(KeyError), show_progress():
        raise KeyError
    note_progress("tracing", 1, 2)
    assert terminal.getvalue() == ""
    monkeypatch.undo()
    with show_progress():
        note_progress("tracing", 1, 2)
        note_progress("tracing", 2, 2)
    assert capsys.readouterr() == ("", "")


def test_the_search_for_channels_is_shown(open_terminal):
    terminal = open_terminal()
    module, example = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.ones(2, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    Pruner(sparsity=0.5, pattern=ChannelPattern()).attach(
        module, optimizer, steps=2, example=example
    )
    shown = terminal.getvalue()
    stages = ["tracing both modes of the model", "following channels", "trying the removal"]
    assert sorted(stages, key=shown.find) == stages
    assert all(stage in shown for stage in stages)
    assert shown.endswith("\r")
    terminal.truncate(0)
    shrink(module, example)
    assert "following channels" in terminal.getvalue()
