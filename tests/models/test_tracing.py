import random
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_prune.models.calls import Call
from lightning_prune.models.torch_floors import TorchFloor
from lightning_prune.models.tracing import trace, trace_any_batch
from tests.versions import refused_before


def operations(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


class Noisy(nn.LSTM):
    def forward(self, x):
        noise = random.random() + np.random.random()  # noqa: NPY002
        return super().forward(x + noise + torch.rand_like(x))[0]


def state():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.backends.mha.get_fastpath_enabled(),
        list(warnings.filters),
    )


@refused_before(TorchFloor.FORWARD_WITH_ATTRIBUTES)
@pytest.mark.parametrize("fails", [False, True])
def test_tracing_leaves_everything_as_it_is_and_warns_of_nothing(fails):
    module, call = Noisy(4, 4, batch_first=True), Call((torch.randn(2, 3, 5 if fails else 4),), {})
    before = state()
    try:
        trace(module, call)
    except RuntimeError:
        assert fails
    assert state() == before


def test_transformer_layers_are_traced_by_their_operations():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        program = trace(layer, Call((torch.randn(2, 3, 8),), {}))
    assert not any("transformer_encoder_layer_fwd" in name for name in operations(program))
    assert "aten.scaled_dot_product_attention.default" in operations(program)


CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


@pytest.mark.parametrize("mask", [CAUSAL, CAUSAL.T, CAUSAL.isinf()])
@pytest.mark.parametrize("is_causal", [None, False])
def test_an_encoder_reads_the_mask_that_it_is_given(mask, is_causal):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    module = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    x, options = torch.randn(2, 5, 8), {"mask": mask, "is_causal": is_causal}
    program = trace(module, Call((x,), options))
    torch.testing.assert_close(program.module()(x, **options), module(x, **options))
    other = torch.zeros_like(mask)
    with torch.no_grad():
        assert not torch.allclose(module(x, mask=other), module(x, mask=mask))


class Masked(nn.Linear):
    def forward(self, x, *, mask):
        return super().forward(x) * mask


class OneSize(nn.Module):
    def forward(self, x):
        return x.view(1, 4).sum(1)


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_is_free_also_for_a_single_sample_and_beside_other_tensors(batch):
    mask = torch.ones(2)
    program, is_free = trace_any_batch(Masked(4, 2), Call((torch.randn(batch, 4),), {"mask": mask}))
    assert is_free
    assert program.module()(torch.randn(7, 4), mask=mask).shape == (7, 2)


def test_a_module_for_a_single_size_is_traced_for_that_size():
    program, is_free = trace_any_batch(OneSize(), Call((torch.randn(1, 2, 2),), {}))
    assert not is_free
    assert program.module()(torch.ones(1, 2, 2)).tolist() == [4]


def test_a_call_without_a_batch_is_traced_as_it_is():
    _, is_free = trace_any_batch(nn.ReLU(), Call((torch.tensor(1.0),), {}))
    assert not is_free


def test_a_module_that_cannot_be_traced_is_refused_with_the_reason():
    message = r"need a module that torch\.export can trace, got a Undecided: \w+: Could not"
    with pytest.raises(ValueError, match=message):
        trace_any_batch(Undecided(), Call((torch.randn(2, 4),), {}))


def test_a_failed_trace_prints_no_graph(capfd):
    with pytest.raises(Exception, match="data-dependent"):
        trace(Undecided(), Call((torch.randn(2, 4),), {}))
    assert capfd.readouterr() == ("", "")


def test_what_a_module_prints_is_not_hidden(capsys):
    class Loud(nn.Module):
        def forward(self, x):
            sys.stderr.write("loud\n")
            return x

    trace(Loud(), Call((torch.randn(2, 4),), {}))
    assert capsys.readouterr().err == "loud\n"


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_modules_are_traced_as_the_modules_inside(whole):
    module = torch.compile(nn.Linear(4, 2), backend="eager")
    module = module if whole else nn.Sequential(module)
    assert "aten.linear.default" in operations(trace(module, Call((torch.randn(2, 4),), {})))
