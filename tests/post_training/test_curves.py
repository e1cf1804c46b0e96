"""Curves of a search: resumed, joined where groups share a producer, and read with care."""

import math

from lightning_prune.post_training.curves import Curve, CurveFile, Measurement


def curve(*losses):
    levels = tuple(range(len(losses)))
    return Curve(
        groups=(), producers=("a",), sparsities=levels, losses=losses, kept=({},) * len(losses)
    )


def test_a_lucky_level_costs_what_a_less_sparse_level_costs():
    assert curve(0, -0.1, 0.2, 0.1, 0.3).rising == (0, 0, 0.2, 0.2, 0.3)


def test_a_level_without_a_loss_stays_without():
    first, second, third, last = curve(0, 0.2, math.nan, 0.1).rising
    assert (first, second, last) == (0, 0.2, 0.2)
    assert math.isnan(third)


def rows(path, digest):
    file = CurveFile(path, digest=digest, monitor="val_acc")
    return [file.find("a", sparsity) for sparsity in (0.5, 0.9)]


def test_measurements_are_found_again_to_the_bit(tmp_path):
    path = tmp_path / "new" / "curves.csv"
    file = CurveFile(path, digest="one", monitor="val_acc")
    file.add(Measurement(group="a", sparsity=0.5, metric=1 / 3))
    assert rows(path, "one") == [1 / 3, None]
    file.add(Measurement(group="a", sparsity=0.9, metric=math.nan))
    assert rows(path, "one")[0] == 1 / 3
    assert math.isnan(rows(path, "one")[1])


def test_measurements_of_other_weights_are_dropped(tmp_path):
    path = tmp_path / "curves.csv"
    CurveFile(path, digest="one", monitor="val_acc").add(
        Measurement(group="a", sparsity=0.5, metric=1.0)
    )
    assert rows(path, "two") == [None, None]
    CurveFile(path, digest="two", monitor="val_acc").add(
        Measurement(group="a", sparsity=0.9, metric=2.0)
    )
    assert rows(path, "two") == [None, 2.0]
    assert rows(path, "one") == [None, None]


def test_no_path_keeps_no_file(tmp_path):
    file = CurveFile(None, digest="one", monitor="val_acc")
    file.add(Measurement(group="a", sparsity=0.5, metric=1.0))
    assert file.find("a", 0.5) == 1.0
    assert list(tmp_path.iterdir()) == []
