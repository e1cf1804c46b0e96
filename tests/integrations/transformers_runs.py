"""A tiny BERT, its data, and a Trainer of transformers."""

from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

SAMPLES, BATCH = 48, 8
EPOCH = SAMPLES // BATCH  # steps


class Sentences(Dataset):
    """Sentences of 6 tokens; the first token says the label."""

    def __init__(self, size=SAMPLES):
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 40, (size, 6), generator=generator)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        tokens = self.tokens[index]
        return {"input_ids": tokens, "labels": tokens[0] % 3}


def make_bert(seed=0, dropout=0.1):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        num_labels=3,  # so that a fifth of the weights is a whole number
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=8,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def make_arguments(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 0,
    }
    return TrainingArguments(**{**defaults, **options})


def make_trainer(folder, *callbacks, model=None, **options):
    return Trainer(
        model=model or make_bert(),
        args=make_arguments(folder, **options),
        train_dataset=Sentences(),
        eval_dataset=Sentences(16),
        callbacks=list(callbacks),
    )


def count_zeros(model, masks):
    """Return the fraction of zeros in the weights that the masks prune."""
    parameters = dict(model.named_parameters())
    zeros = sum(int((parameters[name] == 0).sum()) for name in masks)
    return zeros / sum(mask.numel() for mask in masks.values())


def checkpoint(folder, step):
    return Path(folder) / f"checkpoint-{step}"


class Watch(TrainerCallback):
    """Calls a function at an event."""

    def __init__(self, **events):
        for name, function in events.items():
            setattr(self, name, function)


class KilledError(Exception):
    """Stands for a signal."""


def kill_at(step):
    def on_step_begin(args, state, control, **others):
        if state.global_step == step:
            raise KilledError

    return Watch(on_step_begin=on_step_begin)
