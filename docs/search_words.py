"""Checks that a search of the built site finds what people ask for, first.

    mkdocs build --site-dir site && python docs/search_words.py site

The script runs the search of the site itself: its own JavaScript, in an engine of JavaScript.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from py_mini_racer import MiniRacer

PAGES = {
    "prune only the encoder": "answers/",
    "2x faster inference": "answers/",
    "keep the best sparse checkpoint": "answers/",
    "resume": "answers/",
    "Hugging Face": "hugging_face/",
    "2:4 on a GPU": "answers/",
    "prune and quantize": "answers/",
    "choose the sparsity": "answers/",
    "lottery ticket": "answers/",
    "learning rate": "learning_rates/",
    "quantization": "quantization/",
    "LoRA": "adapters/",
    "wandb": "watch/",
    "Weights & Biases": "watch/",
    "MLflow": "watch/",
    "TensorBoard": "watch/",
    "notebook": "watch/",
    "smaller": "smaller/",
    "file size": "deployment/",
    "speed up": "faster/",
    "phone": "on_a_phone/",
    "mobile": "on_a_phone/",
    "ExecuTorch": "deployment/",
    "ONNX": "deployment/",
    "int8": "quantization/",
    "TensorRT": "deployment/",
    "QAT": "quantization/",
    "fine-tune a pretrained model": "fine_tuning/",
    "BERT": "notebooks/transformer_channels/",
    "Llama": "language_models/",
    "YOLO": "yolo26/",
    "remove channels": "channels/",
    "attention heads": "notebooks/transformer_channels/",
    "DDP": "works_with/",
    "FSDP": "works_with/",
    "EMA": "works_with/",
    "bf16": "works_with/",
    "Accelerate": "other_trainers/",
    "Fabric": "other_trainers/",
    "plain PyTorch loop": "other_trainers/",
    "ModelPruning": "coming_from/",
    "SparseGPT": "recipes/",
    "RigL": "recipes/",
    "straight-through": "recipes/",
    "distillation": "distillation/",
    "YAML config": "configs/",
    "sensitivity": "without_training/",
    "batch normalization statistics": "without_training/",
    "out of memory": "troubleshooting/",
    "NaN": "troubleshooting/",
    "pickle": "security/",
    "sparsity": "answers/",
    "glossary": "glossary/",
    "PruningCallback": "api/callbacks/",
    "merge_sparse": "api/integrations/",
}
"""The page that each search must find first."""


@contextmanager
def search(site: Path) -> Iterator[MiniRacer]:
    """Yield an engine in which the search of a built site has read the index."""
    (worker,) = site.glob("assets/javascripts/workers/search.*.min.js")
    index = json.loads((site / "search" / "search_index.json").read_text())
    with MiniRacer() as engine:
        engine.eval(
            "var self = globalThis, receive, reply, console = {warn() {}};"
            "function addEventListener(name, listener) { receive = listener }"
            "function postMessage(message) { reply = message }"
        )
        engine.eval(worker.read_text())
        _send(engine, 0, {**index, "options": {}})
        yield engine


def find_pages(engine: MiniRacer, text: str) -> Sequence[str]:
    """Return the addresses of the pages that a search finds, the best first."""
    _send(engine, 2, text)
    addresses = engine.eval("reply.data.items.map(page => page[0].location).join(' ')")
    return [address.partition("#")[0] for address in addresses.split()]


def main() -> None:
    """Search for all words, and say which do not find their page first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="folder of the built site")
    with search(parser.parse_args().site) as engine:
        found = {text: find_pages(engine, text) for text in PAGES}
    wrong = {text: pages for text, pages in found.items() if [PAGES[text]] != pages[:1]}
    for text, pages in wrong.items():
        print(f"{text!r} finds {', '.join(pages[:3]) or 'nothing'}, not {PAGES[text]}")
    if wrong:
        sys.exit(f"need the right page first in all {len(PAGES)} searches, got {len(wrong)} others")


def _send(engine: MiniRacer, kind: int, data: object) -> None:
    engine.eval(f"receive({{data: {json.dumps({'type': kind, 'data': data})}}}); 0")


if __name__ == "__main__":
    main()
