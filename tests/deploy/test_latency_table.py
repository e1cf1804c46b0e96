"""Measured latencies in a file that can be written by hand."""

import itertools

import pytest
from hypothesis import given, strategies as st

from lightning_prune.deploy.latency_table import LatencyTable, interpolate, make_monotone

BY_HAND = """\
# phone, 1 thread
# measured on a Tuesday

group,channels,ms
*, 192, 8.0
*, 96, 4.4

# the first layer
conv1.weight,64,8.1
conv1.weight,32,6.9
conv2.weight,128,8.0
"""


def load(folder, text):
    path = folder / "latency.csv"
    path.write_text(text)
    return LatencyTable.load(path)


def test_a_file_by_hand_is_read(tmp_path):
    table = load(tmp_path, BY_HAND)
    assert table.ms == {
        "*": {192: 8.0, 96: 4.4},
        "conv1.weight": {64: 8.1, 32: 6.9},
        "conv2.weight": {128: 8.0},
    }
    assert table.note == "phone, 1 thread\nmeasured on a Tuesday"
    assert (table.dense_ms, table.groups) == (8.0, ("conv1.weight", "conv2.weight"))


def test_a_table_comes_back_from_the_file_to_the_last_bit(tmp_path):
    ms = {"*": {192: 1 / 3, 77.123456789: 0.1}, "a,b.weight[0:3]": {64: 8.0, 8: 2.0}}
    table = LatencyTable(ms=ms, note="torch\n1 thread")
    table.save(tmp_path / "new" / "latency.csv")
    assert LatencyTable.load(tmp_path / "new" / "latency.csv") == table


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("conv1.weight,many,6.9", r"need positive numbers of channels and ms, got .* \(line 12 of"),
        ("conv1.weight,16,-1", r"need positive numbers .* \(line 12 of"),
        ("conv1.weight,16.5,1", r"need positive numbers .* \(line 12 of"),
        ("conv1.weight,16,nan", r"need positive numbers .* \(line 12 of"),
        ("conv1.weight,16", r"need three columns, group,channels,ms, got .* \(line 12 of"),
        ("conv1.weight,32,1", r"need each width of 'conv1.weight' once, .*32 again \(line 12 of"),
    ],
)
def test_a_bad_line_is_named_by_number(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, BY_HAND + line + "\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"need the heading group,channels,ms, got ''"),
        ("# a note\nname,width,ms\n", r"got 'name,width,ms' \(line 2 of '.*latency.csv'\)"),
        ("group,channels,ms\na,64,8\n", r"need a row of the group '\*' .* rows of 'a'.*csv"),
    ],
)
def test_a_file_without_a_heading_or_the_dense_model_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


def test_a_narrow_group_that_measured_slower_counts_as_slow_as_the_wider():
    widths = {8: 5.0, 16: 4.0, 24: 7.0, 32: 12.0, 64: 10.0}
    table = LatencyTable(ms={"*": {64: 10.0}, "a": widths})
    assert table.curve("a") == ((8, 0.45), (16, 0.45), (24, 0.7), (32, 1.0), (64, 1.0))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_monotone_values_never_fall_and_keep_the_mean(values):
    found = make_monotone(values)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(found))
    assert sum(found) == pytest.approx(sum(values))
    assert make_monotone(found) == pytest.approx(found)


@given(st.floats(-1, 9), st.floats(-1, 9))
def test_values_between_points_rise_with_the_points(x, y):
    points = [(0, 0.5), (2, 0.5), (3, 2.0), (8, 4.0)]
    low, high = sorted((x, y))
    assert interpolate(points, low) <= interpolate(points, high)
