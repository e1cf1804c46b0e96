"""Multi-head attention whose heads together are not as wide as its inputs."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, scaled_dot_product_attention

from lightning_prune.models.compiled import compile_like, unwrap_compiled


class SlimMultiheadAttention(nn.Module):
    """`torch.nn.MultiheadAttention` after a removal that torch's own class cannot represent.

    Heads were removed, or channels of the inputs. Arguments, results and names of parameters are
    the same. Only ``in_proj_weight``, ``(3 * heads * head size, embedding)``, and ``out_proj`` are
    smaller.

    Args:
        original: The module that this module replaces; the parameters are taken over.
        head_size: Width of a head.
    """

    _qkv_same_embed_dim = False  # so that torch's layers do not take a fused kernel instead

    def __init__(self, original: nn.MultiheadAttention, head_size: int) -> None:
        super().__init__()
        self.in_proj_weight = original.in_proj_weight
        self.in_proj_bias = original.in_proj_bias
        self.out_proj = original.out_proj
        self.batch_first = original.batch_first
        self.dropout = original.dropout
        self.head_size = head_size
        self.training = original.training

    @property
    def num_heads(self) -> int:
        """Number of heads that are left."""
        return len(self.in_proj_weight) // (3 * self.head_size)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the result of `torch.nn.MultiheadAttention`."""
        is_batched = query.ndim == 3
        inputs = [query, key, value]
        if not is_batched:
            inputs = [x.unsqueeze(0) for x in inputs]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        mask = self._combine_masks(key_padding_mask, attn_mask, query.dtype)
        heads, weights = self._attend(inputs, mask, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not is_batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _attend(
        self, inputs: list[Tensor], mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the heads and, if needed, the attention weights of each head."""
        query, key, value = self._project(inputs)
        rate = self.dropout if self.training else 0.0
        if not need_weights:
            heads = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
            return heads, None
        scores = query @ key.transpose(-2, -1) / math.sqrt(self.head_size)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = dropout(weights, rate)
        return weights @ value, weights

    def _project(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return queries, keys and values as ``(batch, heads, length, head size)``."""
        matrices = self.in_proj_weight.chunk(3)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            linear(x, matrix, bias).view(*x.shape[:2], -1, self.head_size).transpose(1, 2)
            for x, matrix, bias in zip(inputs, matrices, biases, strict=True)
        ]

    def _combine_masks(
        self, key_padding_mask: Tensor | None, attn_mask: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """Return the sum of both masks, for scores ``(batch, heads, queries, keys)``."""
        mask = None
        if attn_mask is not None:
            mask = _as_addend(attn_mask, dtype)
            if mask.ndim == 3:
                mask = mask.view(-1, self.num_heads, *mask.shape[1:])
        if key_padding_mask is not None:
            padding = _as_addend(key_padding_mask, dtype)[:, None, None]
            mask = padding if mask is None else mask + padding
        return mask


def slim_attention(module: nn.Module) -> None:
    """Replace attention that has lost heads or channels of the inputs, under each of its names."""
    slim: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        if unwrap_compiled(parent) is not parent:
            continue  # Its parent replaces it as a whole.
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            attention = unwrap_compiled(child)
            if isinstance(attention, nn.MultiheadAttention) and _has_lost_channels(attention):
                if attention not in slim:
                    head_size = attention.embed_dim // attention.num_heads
                    slim[attention] = SlimMultiheadAttention(attention, head_size)
                if child not in slim:
                    slim[child] = compile_like(slim[attention], child)
                setattr(parent, name, slim[child])


def has_whole_heads(child: nn.Module) -> bool:
    """Whether the tensors of slim attention have whole heads; true of any other module."""
    attention = unwrap_compiled(child)
    if not isinstance(attention, SlimMultiheadAttention):
        return True
    width, bias = attention.num_heads * attention.head_size, attention.in_proj_bias
    lengths = [len(attention.in_proj_weight), *([] if bias is None else [len(bias)])]
    return set(lengths) == {3 * width} and attention.out_proj.in_features == width


def _has_lost_channels(attention: nn.MultiheadAttention) -> bool:
    fused = attention.in_proj_weight
    width = attention.embed_dim
    return fused is not None and fused.shape != (3 * width, width) and attention.bias_k is None


def _as_addend(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask that is added to scores, from a mask whose True forbids a position."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
