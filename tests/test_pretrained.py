"""The benchmark of pretrained weights reads text, compares embeddings and builds its network."""

import pytest
import torch
from torch import nn

from benchmarks.parts.pretrained.efficientnet import EfficientNetLite0, SameConvolution
from benchmarks.parts.pretrained.encoder import Batch, compare, correlate_ranks
from benchmarks.parts.pretrained.text import list_sentences

SOURCE = b'''
"""Read a file and close it again. Too short.

- No sentence of prose is in a list
"""

def close(self):
    """Close the file, if it is still
    open after all."""
    "This string is not a docstring at all."
'''


def test_sentences_come_from_docstrings_whole_and_on_a_line():
    assert list(list_sentences(SOURCE)) == [
        "Read a file and close it again.",
        "Close the file, if it is still open after all.",
    ]


def test_a_file_that_is_not_python_has_no_sentences():
    assert list(list_sentences(b"print 'old'")) == []


def test_ranks_correlate_as_orders_do():
    values = torch.tensor([0.1, 0.4, 0.2, 0.9])
    assert correlate_ranks(values, values.exp()) == pytest.approx(1)
    assert correlate_ranks(values, -values) == pytest.approx(-1)
    # Squared differences of ranks: 1, 1, 0 and 0, so 1 - 6 * 2 / (4 * 15).
    assert correlate_ranks(values, torch.tensor([0.2, 0.4, 0.1, 0.9])) == pytest.approx(0.8)


class Encoder(nn.Module):
    """Answers as a transformer does, with a vector for each token."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors = vectors

    def forward(self, input_ids, attention_mask):
        answer = type("Answer", (), {})()
        answer.last_hidden_state = self.vectors[input_ids]
        return answer


def test_padding_does_not_change_an_embedding():
    ids, mask = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    vectors = torch.tensor([[3.0, 0.0], [3.0, 8.0], [0.0, -2.0]])
    target = torch.tensor([[6.0, 8.0], [6.0, 6.0]])
    batch = Batch(ids, mask, nn.functional.normalize(target))
    found = compare(Encoder(vectors), [batch, batch])
    assert found.cosine == pytest.approx(1)
    assert found.error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 5), (2, 5)])
@pytest.mark.parametrize("side", [7, 8])
def test_a_convolution_keeps_the_size_over_the_stride(side, stride, kernel):
    layer = SameConvolution(1, 1, kernel, stride)
    assert layer(torch.zeros(1, 1, side, side)).shape[2:] == (-(-side // stride),) * 2


def test_the_network_has_the_names_and_sizes_of_the_pretrained_weights():
    state = EfficientNetLite0().state_dict()
    assert len(state) == 296
    assert sum(weights.numel() for name, weights in state.items() if "weight" in name) == 4_630_000
    assert state["_blocks.15._depthwise_conv.weight"].shape == (1152, 1, 3, 3)
