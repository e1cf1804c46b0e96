"""Text, speech and image models of transformers, https://github.com/huggingface/transformers."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.parts.zoo.entry import Builder, Built

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "pad_token_id": 0}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_NARROW = {"d_model": 32, "vocab_size": 64, "num_layers": 2, "num_heads": 4, "d_ff": 64}
_TEXT: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Albert": ("AlbertModel", {**_SMALL, "embedding_size": 16}),
    "Bert": ("BertModel", _SMALL),
    "Bloom": ("BloomModel", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "DeBERTa-v2": ("DebertaV2Model", _SMALL),
    "DistilBert": (
        "DistilBertModel",
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "Electra": ("ElectraModel", {**_SMALL, "embedding_size": 32}),
    "Falcon": ("FalconModel", {**_SMALL, "alibi": False}),
    "Gemma 2": ("Gemma2Model", {**_GROUPED, "head_dim": 8}),
    "GPT-2": ("GPT2Model", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "GPT-NeoX": ("GPTNeoXModel", _SMALL),
    "Llama": ("LlamaModel", _GROUPED),
    "Mamba": ("MambaModel", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}),
    "Mistral": ("MistralModel", _GROUPED),
    "Mixtral": ("MixtralModel", {**_EXPERTS, "num_local_experts": 4}),
    "ModernBert": ("ModernBertModel", {**_SMALL, "pad_token_id": 0}),
    "OPT": (
        "OPTModel",
        {
            **_SMALL,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
        },
    ),
    "Phi-3": ("Phi3Model", _GROUPED),
    "Qwen 2": ("Qwen2Model", _GROUPED),
    "Qwen 3": ("Qwen3Model", {**_GROUPED, "head_dim": 8}),
    "Qwen 3 MoE": (
        "Qwen3MoeModel",
        {**_EXPERTS, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 32},
    ),
    "RoBERTa": ("RobertaModel", {**_SMALL, "pad_token_id": 0}),
    "T5 encoder": ("T5EncoderModel", {**_NARROW, "d_kv": 8}),
}
_IMAGES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ConvNext v2": ("ConvNextV2Model", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}),
    "DINO v2": ("Dinov2Model", {**_SMALL, "image_size": 64, "patch_size": 16}),
    "MobileViT": ("MobileViTModel", {"image_size": 64}),
    "SegFormer": (
        "SegformerModel",
        {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]},
    ),
    "ViT": ("ViTModel", {**_SMALL, "image_size": 64, "patch_size": 16}),
}


def list_builders() -> dict[str, Builder]:
    """Return a builder for each model, by name."""
    texts = {name: partial(_build_text, *model) for name, model in _TEXT.items()}
    images = {name: partial(_build_image, *model) for name, model in _IMAGES.items()}
    return texts | images | {"Bart": _build_bart, "T5": _build_t5, "Wav2Vec 2": _build_speech}


def _build(name: str, options: Mapping[str, Any]) -> Any:
    import transformers

    kind = getattr(transformers, name)
    return kind(kind.config_class(**options))


def _build_text(name: str, options: Mapping[str, Any]) -> Built:
    return _build(name, {"use_cache": False, **options}), {"input_ids": _draw_tokens()}


def _build_image(name: str, options: Mapping[str, Any]) -> Built:
    return _build(name, options), {"pixel_values": torch.randn(2, 3, 64, 64)}


def _build_bart() -> Built:
    layers = {
        f"{part}_{key}": value
        for part in ("encoder", "decoder")
        for key, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 64}.items()
    }
    options = {"vocab_size": 64, "d_model": 32, "max_position_embeddings": 64, "use_cache": False}
    return _build("BartModel", options | layers), _draw_pairs()


def _build_t5() -> Built:
    return _build("T5Model", {**_NARROW, "d_kv": 8, "use_cache": False}), _draw_pairs()


def _build_speech() -> Built:
    options = {**_SMALL, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16}
    return _build("Wav2Vec2Model", {**options, "mask_time_prob": 0.0}), torch.randn(2, 3200)


def _draw_tokens() -> torch.Tensor:
    return torch.randint(3, 64, (2, 12))


def _draw_pairs() -> dict[str, torch.Tensor]:
    return {"input_ids": _draw_tokens(), "decoder_input_ids": _draw_tokens()}
