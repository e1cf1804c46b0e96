import pytest
import torch

from lightning_prune.cli.file_forward import MisfitError, run_in_pieces
from lightning_prune.models.calls import Call


def run_three(call):
    """A file that takes three samples, and adds a vector without samples."""
    samples, vector = call.tensors
    assert samples.shape == (3, 2)
    return [samples + vector, samples.sum(1)]


@pytest.mark.parametrize("samples", [1, 3, 4, 6, 8])  # not 2, the length of the vector
def test_a_batch_of_any_size_is_answered_in_pieces(samples):
    batch, vector = torch.rand(samples, 2), torch.rand(2)
    call = Call((batch, vector), {})
    sums, totals = run_in_pieces(run_three, 3, call)
    assert torch.equal(sums, batch + vector)
    assert torch.equal(totals, batch.sum(1))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_answers_without_samples_are_refused_in_pieces_only(shape):
    answers, call = [torch.ones(shape)], Call((torch.rand(4, 2),), {})
    assert run_in_pieces(lambda call: answers, 4, call) is answers
    message = "the file takes 2 samples, validation gives 4, and not all outputs are of samples"
    with pytest.raises(MisfitError, match=message):
        run_in_pieces(lambda call: answers, 2, call)
