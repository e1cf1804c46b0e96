import pytest
import torch
from rich import get_console, reconfigure
from torch import nn

from lightning_prune import ChannelPattern, Pruner, export_onnx, report, shrink
from lightning_prune.models.progress import note_progress, show_progress, track_progress

CLEARED = "\x1b[2K"  # a line


def test_a_stage_is_shown_in_a_bar_that_goes_at_the_end(terminal):
    with show_progress():
        note_progress("tracing", 1, 2)
        shown = terminal.read_anew()
        assert "tracing" in shown
        assert "1/2" in shown
        note_progress("tracing", 2, 2, "of [all] modes")
        shown = terminal.read_anew()
        assert "tracing: of [all] modes" in shown
        assert "2/2" in shown
        note_progress("counting", 3, None)
        shown = terminal.read_anew()
        assert "3/?" in shown
        assert "tracing" not in shown
    cleared = terminal.read_anew().rpartition(CLEARED)
    assert cleared[1]
    assert "counting" not in cleared[2]


def test_a_block_inside_of_another_draws_below_and_goes_first(terminal):
    with show_progress():
        note_progress("outer", 0, 1)
        with show_progress():
            note_progress("inner", 0, 1)
            shown = terminal.read_anew()
            assert shown.rfind("outer") < shown.rfind("inner")
        note_progress("outer", 1, 1)
        assert "inner" not in terminal.read_anew()


def test_a_block_that_is_not_wanted_hides_the_blocks_inside(terminal):
    with show_progress(False), show_progress():
        note_progress("inner", 0, 1)
    with show_progress(), show_progress(False):
        note_progress("inner", 0, 1)
    assert terminal.getvalue() == ""


def test_nothing_is_shown_outside_of_a_block_or_without_a_terminal(terminal, capsys):
    note_progress("tracing", 1, 2)
    with pytest.raises(KeyError), show_progress():
        raise KeyError
    note_progress("tracing", 1, 2)
    assert terminal.getvalue() == ""
    reconfigure()
    with show_progress():
        note_progress("tracing", 1, 2)
        note_progress("tracing", 2, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_of_others_on_the_same_console_does_not_end_the_work(terminal):
    with get_console().status("training"), show_progress():
        assert list(track_progress("ab", "tracing")) == ["a", "b"]


def test_the_search_for_channels_is_shown_unless_that_is_off(terminal):
    module, example = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.ones(2, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, pattern=ChannelPattern())
    pruner.attach(module, optimizer, steps=2, example=example, progress=False)
    pruner.detach(completed=False)
    shrink(module, example, progress=False)
    assert terminal.getvalue() == ""
    pruner.attach(module, optimizer, steps=2, example=example)
    shown = terminal.read_anew()
    stages = ["tracing both modes of the model", "following channels", "trying the removal"]
    assert sorted(stages, key=shown.find) == stages
    assert all(stage in shown for stage in stages)
    shrink(module, example)
    assert "following channels" in terminal.getvalue()


@pytest.mark.slow
def test_reports_and_files_are_shown_unless_that_is_off(terminal, tmp_path):
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library)
    module, example = nn.Linear(4, 2), torch.ones(2, 4)
    for progress in (False, True):
        assert terminal.getvalue() == ""
        report(module, example, blocks=6, progress=progress)
        export_onnx(module, tmp_path / "linear.onnx", example=example, progress=progress)
    for stage in ("compressing", "dense and pruned in turns", "tracing", "comparing"):
        assert stage in terminal.getvalue()
