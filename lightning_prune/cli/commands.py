"""The subcommands of ``lightning-prune``, by name."""

OURS = {
    "prune": "Prune a checkpoint in one update without training.",
    "sensitivity": "Measure how much sparsity each tensor bears alone.",
    "search": "Search the sparsities that a tolerance or a budget allows.",
    "report": "Measure the gain from pruning: size, work, memory and latency.",
    "reestimate": "Give the batch normalizations of a checkpoint new statistics.",
    "shrink": "Remove the channels of a checkpoint that are zero.",
    "export": "Write a checkpoint as a file to deploy.",
}
"""The subcommands of this package, with a line for each."""

LIGHTNINGS = {
    "fit": "Train a model, and prune it meanwhile.",
    "validate": "Run the validation of a checkpoint.",
    "test": "Run the test of a checkpoint.",
    "predict": "Run the prediction of a checkpoint.",
}
"""The subcommands of LightningCLI, with a line for each."""

MODELS = LIGHTNINGS | OURS
"""The subcommands that take the model of a config."""

PRUNING = ("fit", "prune", "sensitivity", "search")
"""The subcommands that read the PruningCallback."""

OTHERS = {
    "demo": "Train and prune a small network, which needs no files.",
    "completion": "Print a script for bash that completes commands and options.",
}
"""The subcommands that take no model."""
