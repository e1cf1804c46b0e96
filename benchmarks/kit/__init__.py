"""Rooms that the benchmarks share: a script imports `benchmarks.kit.<room>`.

- `turns` times calls that alternate.
- `judging` computes means and deviations, compares numbers with bars, and exits with the verdict.
- `recording` describes the machine, prints tables, and keeps runs in a file.
- `networks` builds the networks.
- `data` reads the digits and MNIST; `text` reads the standard library as bytes.
- `training` holds a classifier and a quiet Trainer.
- `onnx_files` runs and times ONNX files.
- `memory` counts the bytes of torch and of the process.
- `processes` runs functions in processes that talk by gloo, and scripts in a process of their own.

A script puts the root of the repository first on `sys.path`, and so finds `benchmarks`, `examples`
and `lightning_prune` from any folder. Nothing here is imported from `tests`, and from
`lightning_prune` only the public names are.
"""
