"""Prune a small Llama in one shot, recover it by LoRA, merge: `python -m examples.lora`.

The script trains a dense Llama on the sources of Python, and prunes it without training. Then LoRA
adapters of PEFT learn beside the frozen, sparse base, and `merge_sparse` merges them under the
zeros of the base. At the end a table compares the four models. It needs `peft` and `transformers`:
`pip install 'lightning-prune[peft]'`.
"""

import argparse
import math

import torch
from lightning.pytorch import LightningModule, seed_everything
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from examples.byte_decoder import BYTES, SourcesDataModule
from examples.language_model import make_trainer
from lightning_prune import PruningCallback, Repair, UniformAllocation, prune_once, sparsity
from lightning_prune.integrations.peft import merge_sparse

HEAD = {"*lm_head*": None}  # the head stays dense, as the embedding does by default


class SmallLlama(LightningModule):
    """A Llama over bytes. It has no code for pruning or adapters.

    Args:
        width: Size of the vector of each byte.
        depth: Number of layers.
        learning_rate: Of AdamW; it falls to 0 along a cosine.
    """

    def __init__(self, width: int = 64, depth: int = 2, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=BYTES,
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=depth,
                num_attention_heads=4,
                max_position_embeddings=128,
            )
        )

    def _loss(self, windows: Tensor) -> Tensor:
        logits = self.llama(input_ids=windows[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the next byte."""
        return self._loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the cross-entropy in bits for each byte."""
        self.log("bits_per_byte", self._loss(batch) / math.log(2))

    def configure_optimizers(self) -> dict[str, object]:
        """Return AdamW over the parameters that are not frozen."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": course, "interval": "step"}}


def main() -> None:
    """Train, prune, recover, merge, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8, help="of the dense training")
    parser.add_argument("--tuning-epochs", type=int, default=4, help="of the adapters")
    parser.add_argument("--fast", action="store_true", help="a tiny model and few steps: a test")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    seed_everything(0)
    model = SmallLlama(width=16, depth=1) if arguments.fast else SmallLlama()
    data = SourcesDataModule(batches=16) if arguments.fast else SourcesDataModule()
    rows = []

    def note(name: str) -> None:
        (metrics,) = make_trainer(1).validate(model, data, verbose=False)
        rows.append(f"| {name} | {float(sparsity(model)):.4f} | {metrics['bits_per_byte']:.3f} |")

    make_trainer(1 if arguments.fast else arguments.epochs).fit(model, data)
    note("dense")

    targets = {"*": arguments.sparsity, **HEAD}
    pruning = PruningCallback(sparsity=targets, allocation=UniformAllocation())
    prune_once(make_trainer(1, pruning), model, data, repair=Repair())
    note("pruned in one shot")

    adapters = LoraConfig(r=arguments.rank, lora_alpha=16, target_modules="all-linear")
    model.llama = get_peft_model(model.llama, adapters)
    recover(model, data, 1 if arguments.fast else arguments.tuning_epochs)
    note("recovered by LoRA")

    merged = merge_sparse(model.llama)
    model.llama = merged.model
    note("merged under the zeros")
    Console().print(merged.table())
    print("| model | sparsity | bits per byte |\n|---|---|---|")
    print("\n".join(rows))


def recover(model: SmallLlama, data: SourcesDataModule, epochs: int) -> None:
    """Train the adapters; the callback counts the zeros of the frozen base, and checks them."""
    keeping = PruningCallback(sparsity={"*weight*": 0.0, **HEAD}, keep_zeros=True)
    make_trainer(epochs, keeping).fit(model, data)


if __name__ == "__main__":
    main()
