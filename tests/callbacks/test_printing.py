"""The tables of a pruning are as short as asked, and nobody prints them unasked."""

import pytest
import torch

from lightning_prune import ChannelPattern, PruningCallback
from tests.callbacks.runs import fit
from tests.callbacks.teaching import Forwarding


def printed(capsys, *, table="short", **options):
    fit(pruning=PruningCallback(sparsity=0.5, table=table), **options)
    return capsys.readouterr().out


def test_a_table_is_printed_when_training_starts_and_when_it_ends(capsys):
    text = printed(capsys, enable_model_summary=True)
    assert text.count("To be pruned") == text.count("Pruned") == 1


@pytest.mark.parametrize("options", [{"table": "off", "enable_model_summary": True}, {}])
def test_no_table_is_printed_if_it_is_off_or_no_summary_of_the_model_is_printed(capsys, options):
    assert "runed" not in printed(capsys, **options)


def test_a_full_table_has_the_name_of_each_parameter(capsys):
    text = printed(capsys, table="full", enable_model_summary=True)
    assert "net.0.weight" in text
    assert "net.2.weight" in text


def test_a_wrong_size_is_refused_by_name():
    with pytest.raises(ValueError, match="table='long'"):
        PruningCallback(table="long")


@pytest.mark.parametrize("wanted", [True, False])
def test_the_search_for_channels_shows_a_bar_if_the_trainer_does(wanted, terminal):
    pruning = PruningCallback(
        sparsity=0.5, pattern=ChannelPattern(round_to=1), example=torch.zeros(1, 16), table="off"
    )
    fit(pruning=pruning, model=Forwarding(), enable_progress_bar=wanted)
    assert ("following channels" in terminal.getvalue()) is wanted
