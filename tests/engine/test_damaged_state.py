"""A saved state that is damaged is refused by the name of the tensor, before anything changes."""

import copy

import pytest
import torch

from lightning_prune import OneShotSchedule, Pruner
from tests.engine.training import OPTIMIZERS, STEPS, Net, train

AT_ONCE = OneShotSchedule(end=0)


@pytest.fixture
def state():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=1)
    pruner.detach()
    return pruner.state_dict()


def damaged(state, mask, *, version=2):
    state = copy.deepcopy(state)
    state["masks"]["2.weight"] = mask(state["masks"]["2.weight"])
    state["version"] = version
    if version < 2:
        del state["checksums"]
    return state


def flip(bits):
    bits = bits.clone()
    bits[3] ^= 16
    return bits


DAMAGE = {
    "shorter": (lambda bits: bits[:1], r"shape \[1\], where \[20, 40\] weights take 100 bytes"),
    "longer": (lambda bits: torch.cat([bits, bits]), r"a mask of shape \[200\], where \[20, 40\]"),
    "folded": (lambda bits: bits.view(10, 10), r"a mask of shape \[10, 10\], where \[20, 40\]"),
    "of another type": (lambda bits: bits.bool(), r"a mask of torch\.bool, not of bytes"),
    "no tensor": (lambda bits: bits.tolist(), r"a mask of <class 'list'>, not of bytes"),
}


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_mask_of_another_form_is_refused_by_name(state, change, message, version):
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    with pytest.raises(ValueError, match=message + ".* for '2.weight'"):
        pruner.load_state_dict(damaged(state, change, version=version))


@pytest.mark.parametrize("change", [flip, torch.zeros_like], ids=["a bit", "all bits"])
def test_bits_that_were_flipped_are_found_by_the_checksum_of_the_mask(state, change):
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    with pytest.raises(ValueError, match=r"not fit its checksum for '2\.weight'; go on from an"):
        pruner.load_state_dict(damaged(state, change))


@pytest.mark.parametrize("version", [0, 1])
def test_a_mask_that_keeps_nothing_is_refused_by_name_before_anything_changes(state, version):
    model = Net()
    before = copy.deepcopy(model.state_dict())
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.load_state_dict(damaged(state, torch.zeros_like, version=version))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(ValueError, match=r"keeps a weight, got none in '2\.weight'"):
        pruner.attach(model, optimizer, steps=STEPS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not pruner.tensors


def test_a_mask_that_keeps_nothing_goes_on_where_the_sparsity_is_one(state):
    model = Net()
    pruner = Pruner(sparsity={"*": 0.5, "2": 1.0}, schedule=AT_ONCE)
    pruner.load_state_dict(damaged(state, torch.zeros_like, version=1))
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    assert not pruner.masks["2.weight"].any()
    assert not model[2].weight.any()


def test_a_mask_without_its_checksum_or_shape_and_foreign_statistics_are_refused_by_name(state):
    for key, message in (("checksums", "does not fit its checksum"), ("shapes", "without a shape")):
        lacking = copy.deepcopy(state)
        del lacking[key]["4.weight"]
        with pytest.raises(ValueError, match=f"{message} for '4.weight'"):
            Pruner().load_state_dict(lacking)
    state["observed"]["4.weight"] = {"sum": "many"}
    with pytest.raises(ValueError, match=r"statistics that are no tensors for '4\.weight'"):
        Pruner().load_state_dict(state)


def test_a_state_without_checksums_is_that_of_an_earlier_version(state):
    del state["checksums"]
    with pytest.raises(ValueError, match=r"got a state without \['checksums'\]"):
        Pruner().load_state_dict(state)
    model = Net()
    pruner = Pruner(sparsity=0.5)
    pruner.load_state_dict(state | {"version": 1})
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    assert pruner.sparsity == 0.5
    assert pruner.state_dict()["version"] == 2
    assert pruner.state_dict()["checksums"].keys() == state["masks"].keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: 3, "need the state of a Pruner, got '3'"),
        (lambda state: {**state, "version": "2"}, "version 2 or earlier, got version=2"),
        (lambda state: {**state, "masks": [1]}, r"other values than mappings in \['masks'\]"),
        (lambda state: {**state, "due": None}, r"other values than mappings in \['due'\]"),
    ],
    ids=["no mapping", "version in text", "masks in a list", "no due points"],
)
def test_a_state_of_another_form_is_refused(state, change, message):
    with pytest.raises(ValueError, match=message):
        Pruner().load_state_dict(change(state))
