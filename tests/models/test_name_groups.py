"""Names that differ in numbers only share a label, from which every name can be read again."""

import itertools
import re

from hypothesis import given, strategies as st

from lightning_prune.models.name_groups import group_names

PARTS = st.sampled_from(["layer", "conv1", "block10", "01", "0", "1", "2", "3", "11", "weight"])
NAMES = st.lists(st.lists(PARTS, min_size=1, max_size=4).map(".".join), unique=True)


def label(names, kind=lambda _: None):
    return [group.label for group in group_names(names, name=str, kind=kind)]


def expand(text):
    """Return all names that a label stands for."""
    parts = re.split(r"\{(.*?)\}", text)
    choices = [[part] for part in parts]
    for place in range(1, len(parts), 2):
        choices[place] = [
            str(number)
            for run in parts[place].split(",")
            for number in range(int(run.split("..")[0]), int(run.split("..")[-1]) + 1)
        ]
    return ["".join(each) for each in itertools.product(*choices)]


def test_blocks_in_stages_share_a_label_and_a_gap_is_shown():
    names = [f"layer{a}.{b}.conv{c}.weight" for a in (1, 2) for b in (0, 1, 2, 4) for c in (1, 2)]
    assert label(names) == ["layer{1,2}.{0..2,4}.conv{1,2}.weight"]


def test_items_of_another_kind_have_a_label_of_their_own():
    shapes = {"0.weight": 3, "1.weight": 4, "2.weight": 3}
    assert label(list(shapes), shapes.get) == ["{0,2}.weight", "1.weight"]


@given(NAMES)
def test_the_labels_stand_for_every_name_once(names):
    found = [name for each in label(names) for name in expand(each)]
    assert sorted(found) == sorted(names)


@given(NAMES)
def test_groups_hold_their_items_in_order_and_come_in_the_order_of_the_first(names):
    groups = [group.items for group in group_names(names, name=str, kind=lambda _: None)]
    places = [[names.index(item) for item in items] for items in groups]
    assert all(each == sorted(each) for each in places)
    assert places == sorted(places)
