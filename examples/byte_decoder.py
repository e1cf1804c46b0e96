"""A small language model over bytes, and the text that it reads: the sources of Python itself."""

import math
import sysconfig
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.utils.data import DataLoader, Dataset, RandomSampler

BYTES = 256
VALIDATION_STRIDE = 10  # a tenth of the validation text is enough


class Attention(nn.Module):
    """Causal attention: each byte looks at the bytes before it.

    Args:
        width: Size of the vector of each byte, which the heads share.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the result for each byte, ``(batch, length, width)`` as the input."""
        queries, keys, values = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = scaled_dot_product_attention(
            rotate(queries), rotate(keys), values, is_causal=True
        )
        return self.output(attended.transpose(1, 2).flatten(-2))


def rotate(x: Tensor) -> Tensor:
    """Turn pairs of entries by angles that grow with the place, so that attention sees distances.

    These are the rotary embeddings of Su et al., "RoFormer" (2021),
    https://arxiv.org/abs/2104.09864.

    Args:
        x: Queries or keys, ``(batch, heads, length, size)`` with an even size.
    """
    length, size = x.shape[-2:]
    speeds = 10_000.0 ** (-torch.arange(0, size, 2, device=x.device) / size)
    angles = torch.arange(length, device=x.device).unsqueeze(1) * speeds
    first, second = x.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


class FeedForward(nn.Module):
    """Two linear layers, applied to each byte alone.

    Args:
        width: Size of the vector of each byte; the inner vector is four times as large.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the result for each byte, ``(batch, length, width)`` as the input."""
        return self.down(gelu(self.up(x)))


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a normalization and added to the input.

    Args:
        width: Size of the vector of each byte.
        heads: Number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width), Attention(width, heads)
        self.feed_forward_norm, self.feed_forward = nn.RMSNorm(width), FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors for the next layer, ``(batch, length, width)`` as the input."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class ByteDecoder(LightningModule):
    """A decoder-only transformer over bytes. It has no code for pruning.

    Args:
        width: Size of the vector of each byte.
        heads: Number of attention heads in each layer.
        depth: Number of layers.
        learning_rate: The peak of the learning rate of AdamW. It rises over the first tenth of the
            steps, and falls to 0 along a cosine.
    """

    def __init__(
        self,
        width: int = 96,
        heads: int = 4,
        depth: int = 2,
        learning_rate: float = 3e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="learning_rate")  # so that the config of a fit decides
        self.learning_rate = learning_rate
        self.example_input_array = torch.zeros(1, 64, dtype=torch.long)
        self.bytes = nn.Embedding(BYTES, width)
        nn.init.normal_(self.bytes.weight, std=0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, BYTES, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of the next byte at each place of ``text``, ``(batch, length)``."""
        return self.head(self.norm(self.layers(self.bytes(text))))

    def _loss(self, windows: Tensor) -> Tensor:
        return cross_entropy(self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the next byte."""
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the cross-entropy in bits for each byte."""
        self.log("bits_per_byte", self._loss(batch) / math.log(2), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and the course of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)

        def course(step: int) -> float:
            rise = min(1.0, (step + 1) / max(1, steps // 10))
            return rise * (1 + math.cos(math.pi * step / steps)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, course)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Windows(Dataset[Tensor]):
    """Windows of a text.

    Args:
        text: The bytes.
        length: Number of bytes in a window.
        stride: Number of bytes between the starts of two windows.
    """

    def __init__(self, text: Tensor, length: int, stride: int = 1) -> None:
        self.windows = text.unfold(0, length, stride)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        """Return the bytes of a window as indices."""
        return self.windows[index].long()


class SourcesDataModule(LightningDataModule):
    """The sources of Python's standard library: each tenth file is for validation.

    Args:
        context: Number of bytes that the model sees.
        batch_size: Number of windows in a training batch.
        batches: Number of training batches in an epoch.
    """

    def __init__(self, context: int = 64, batch_size: int = 32, batches: int = 50) -> None:
        super().__init__()
        self.context, self.batch_size, self.batches = context, batch_size, batches

    def setup(self, stage: str) -> None:
        """Read the files."""
        found = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        files = [file for file in found if file.is_file()]  # some links lead nowhere
        self.validation = Windows(
            read(files[9::10]), self.context + 1, VALIDATION_STRIDE * self.context
        )
        del files[9::10]
        self.train = Windows(read(files), self.context + 1)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return batches of windows at random places."""
        windows = self.batches * self.batch_size
        sampler = RandomSampler(self.train, replacement=True, num_samples=windows)
        return DataLoader(self.train, self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return windows that are spread over the files for validation."""
        return DataLoader(self.validation, 64)


def read(files: list[Path]) -> Tensor:
    """Return the bytes of files, one file after the other."""
    text = b"".join(file.read_bytes() for file in files)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
