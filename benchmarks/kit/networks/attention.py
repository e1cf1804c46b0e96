"""Transformers: ViT for images of 32 x 32, BERT for sentences of 64 words, and GPT for bytes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kit.networks.small import CLASSES, scale_width

WORDS = 1000
PADDING = 0  # the word that fills up short sentences


def draw_sentences(count: int, generator: torch.Generator) -> Tensor:
    """Return random sentences of 64 words; padding may be at the end, never at the start."""
    words = torch.randint(1, WORDS, (count, 64), generator=generator)
    lengths = torch.randint(16, 65, (count, 1), generator=generator)
    return words.masked_fill(torch.arange(64) >= lengths, PADDING)


class SelfAttention(nn.Module):
    """Each position reads from all positions that the mask allows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.head_size = width // heads

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return ``(n, positions, width)``; the mask is True where a position may be read."""
        queries, keys, values = (
            layer(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network, normalized before (ViT) or after (BERT)."""

    def __init__(self, width: int, heads: int, *, normalized_first: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.normalized_first = normalized_first

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``(n, positions, width)``."""
        if self.normalized_first:
            x = x + self.attention(self.attention_norm(x), mask)
            return x + self.down(functional.gelu(self.up(self.norm(x))))
        x = self.attention_norm(x + self.attention(x, mask))
        return self.norm(x + self.down(functional.gelu(self.up(x))))


class VisionTransformer(nn.Module):
    """Patches to classes: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021)."""

    def __init__(self, scale: float = 1.0, depth: int = 6, heads: int = 8) -> None:
        super().__init__()
        width = scale_width(256, scale)
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) / 50)
        self.positions = nn.Parameter(torch.randn(1, 65, width) / 50)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, normalized_first=True) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, which are read off the extra token."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Bert(nn.Module):
    """Sentences of words and padding to classes: Devlin et al., "BERT" (2019)."""

    def __init__(self, scale: float = 1.0, depth: int = 6, heads: int = 8) -> None:
        super().__init__()
        width = scale_width(256, scale)
        self.words = nn.Embedding(WORDS, width)
        self.positions = nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, normalized_first=False) for _ in range(depth)
        )
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        """Return logits of sentences ``(n, positions)``."""
        x = self.words(words) + self.positions(torch.arange(words.shape[1], device=words.device))
        x, mask = self.norm(x), (words != PADDING)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class BytePredictor(nn.Module):
    """The next byte at each position: Radford et al., "Improving Language Understanding" (2018).

    Args:
        positions: Bytes that a window shows.
        width: Width of the residual stream.
        depth: Number of blocks.
        heads: Number of heads of each block.
    """

    def __init__(self, positions: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.positions = nn.Parameter(torch.randn(1, positions, width) / 50)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, normalized_first=True) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)
        self.register_buffer("before", torch.ones(positions, positions).tril().bool())

    def forward(self, window: Tensor) -> Tensor:
        """Return logits ``(n, 256, positions)``; a position reads no later position."""
        x = self.bytes(window) + self.positions
        for block in self.blocks:
            x = block(x, self.before)
        return self.head(self.norm(x)).transpose(1, 2)
