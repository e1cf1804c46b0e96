import logging
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_prune.models.undisturbed import (
    keep_generators,
    keep_modes,
    keep_quiet,
    keep_tensors,
    undo_on_error,
    use_plain_kernels,
)


def numbers():
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


class StoppedError(Exception):
    pass


@pytest.fixture(params=[False, True], ids=["completed", "raised"])
def inside(request):
    """Run a function inside a context that it then leaves in either way."""

    def run(context, function=lambda: None):
        try:
            with context:
                function()
                if request.param:
                    raise StoppedError
        except StoppedError:
            pass

    return run


def test_generators_go_on_as_if_nothing_had_been_drawn(inside):
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    expected = numbers()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    inside(keep_generators(), numbers)
    assert numbers() == expected


def test_a_seed_makes_the_block_draw_the_same(inside):
    drawn = []
    for _ in range(2):
        inside(keep_generators(seed=3), lambda: drawn.append(numbers()))
    assert drawn[0] == drawn[1] != numbers()


def test_each_part_gets_its_mode_back(inside):
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    module[1].eval()
    inside(keep_modes(module), module.eval)
    assert [part.training for part in module.modules()] == [True, True, False]
    inside(keep_modes(module), module.train)
    assert [part.training for part in module.modules()] == [True, True, False]


class Cache(nn.Module):
    """It writes into buffers, replaces them, lets them grow, adds and deletes them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        for name in ("written", "replaced", "grown", "deleted"):
            self.register_buffer(name, torch.ones(2))
        self.register_buffer("empty", None)

    def change(self):
        with torch.no_grad():
            self.weight.mul_(2)
        self.written += 1
        self.replaced = self.replaced + 1
        self.grown = torch.cat([self.grown, self.grown])
        del self.deleted
        self.register_buffer("added", torch.ones(1))
        self.empty = torch.ones(1)


@pytest.mark.parametrize("parameters", [True, False])
def test_buffers_and_parameters_get_their_values_back(inside, parameters):
    module = Cache()
    weight, state = module.weight, {n: t.clone() for n, t in module.state_dict().items()}
    inside(keep_tensors(module, parameters=parameters), module.change)
    if not parameters:
        state["weight"] *= 2
    assert module.state_dict().keys() == state.keys()
    torch.testing.assert_close(dict(module.state_dict()), state, rtol=0, atol=0)
    assert module.weight is weight
    assert module.empty is None


def test_an_error_alone_undoes_the_changes_of_a_block():
    module = Cache()
    state = {n: t.clone() for n, t in module.state_dict().items()}

    def change_and_fail():
        with undo_on_error(module):
            module.change()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change_and_fail()
    torch.testing.assert_close(dict(module.state_dict()), state, rtol=0, atol=0)
    with undo_on_error(module):
        module.change()
    assert module.weight.tolist() == [2, 2]
    assert module.written.tolist() == [2, 2]


def test_a_buffer_that_inference_mode_has_made_is_put_back():
    module = Cache()
    with keep_tensors(module), torch.inference_mode():
        module.replaced = module.replaced + 1
    assert module.replaced.tolist() == [1, 1]
    assert not module.replaced.is_inference()


def test_tied_tensors_stay_tied(inside):
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    before = module[0].weight.detach().clone()
    inside(keep_tensors(module), lambda: module[0].weight.data.zero_())
    assert module[1].weight is module[0].weight
    assert torch.equal(module[0].weight, before)


def test_loggers_and_warnings_are_quiet_inside_only(inside, caplog):
    logger = logging.getLogger("tests.undisturbed")
    logger.setLevel(logging.INFO)

    def speak():
        logger.warning("inside")
        warnings.warn("about the inside", stacklevel=1)

    inside(keep_quiet("tests.undisturbed", warned=["about the inside"]), speak)
    assert logger.level == logging.INFO
    logger.info("outside")
    assert [record.message for record in caplog.records] == ["outside"]
    with pytest.warns(UserWarning, match="about the inside"):
        speak()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_fast_path_of_attention_is_off_inside_only(inside, enabled):
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        inside(
            use_plain_kernels(),
            lambda: pytest.fail("on") if torch.backends.mha.get_fastpath_enabled() else None,
        )
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
