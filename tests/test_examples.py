"""Every config and every example, at small size."""

import gzip
from importlib.util import find_spec

import pytest
import torch
import yaml

from lightning_prune import LatencyTable
from tests.commands import ROOT, run_python

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
BY_ROUNDS = ROOT / "configs" / "digits_tolerance.yaml"  # the metric decides where it ends
BY_LATENCY = ROOT / "configs" / "digits_budget_latency.yaml"  # measures for a minute
BY_REPAIR = ROOT / "configs" / "digits_alps.yaml"  # prunes a checkpoint


@pytest.fixture
def fit(tmp_path, monkeypatch, prune_cli):
    def fit(config):
        monkeypatch.chdir(ROOT)
        arguments = ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
        arguments += ["--trainer.logger.save_dir", tmp_path, "--trainer.enable_progress_bar", "no"]
        prune_cli("fit", "--config", config, *arguments)

    return fit


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [path for path in CONFIGS if path not in (BY_ROUNDS, BY_LATENCY, BY_REPAIR)],
    ids=lambda path: path.stem,
)
def test_every_config_trains_and_lands(config, tmp_path, fit, capsys):
    fit(config)
    printed = capsys.readouterr().out.splitlines()
    reached, final = next(row for row in reversed(printed) if row.startswith("│ all")).split("│")[
        -3:-1
    ]
    assert reached.strip() == final.strip() != "0.0000"
    assert list(tmp_path.glob("**/last.ckpt"))


@pytest.mark.slow
def test_the_config_of_a_tolerance_says_the_rounds_before_it_starts(fit, capsys):
    with pytest.warns(UserWarning, match="before the first round of pruning"):
        fit(BY_ROUNDS)
    assert "tolerance: up to 7 rounds to sparsity 0.9900" in capsys.readouterr().out


@pytest.mark.slow
def test_the_config_of_a_latency_reads_the_table_and_measures_the_end(fit, tmp_path, capsys):
    groups = {"net.0.weight": 32, "net.3.weight": 64, "net.8.weight": 64}
    saved = {name: {total: 1.0, total / 2: 0.8} for name, total in groups.items()}
    table = tmp_path / "latency.csv"
    LatencyTable(ms={"*": {160: 1.0, 80: 0.45}, **saved}).save(table)
    config = tmp_path / "latency.yaml"
    config.write_text(BY_LATENCY.read_text().replace("digits_latency.csv", str(table)))
    fit(config)
    assert "asked for at most 0.5 ms, predicted" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_demo_is_measured_and_pruned_without_training(tmp_path, monkeypatch, prune_cli, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "dense.yaml").write_text(
        (ROOT / "configs" / "digits.yaml").read_text().replace("sparsity: 0.9", "sparsity: 0.0")
    )

    def main(command, config, *arguments):
        arguments += ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "no")
        arguments += ("--trainer.logger.save_dir", tmp_path)
        prune_cli(command, "--config", config, *arguments)

    main("fit", tmp_path / "dense.yaml", "--trainer.max_epochs", "2")
    (dense,) = tmp_path.glob("**/last.ckpt")
    output, config = tmp_path / "sensitivity", ROOT / "configs" / "digits.yaml"
    options = ("--monitor", "val_acc", "--mode", "max", "--output", str(output))
    main("sensitivity", config, "--ckpt_path", str(dense), *options)
    targets = yaml.safe_load((output / "sensitivity.yaml").read_text())["sparsity"]
    assert list(targets) == ["net.0.weight", "net.3.weight", "net.8.weight", "net.10.weight"]
    assert targets["net.8.weight"] is not None
    main("prune", BY_REPAIR, "--ckpt_path", str(dense), "--output", str(tmp_path / "alps.ckpt"))
    assert "│ net.10.weight │" in capsys.readouterr().out.partition("Repaired")[2]
    main("prune", config, "--ckpt_path", str(dense))
    assert "at sparsity 0.9000" in capsys.readouterr().out
    pruned = dense.with_name("last-pruned.ckpt")
    main("report", config, "--ckpt_path", str(pruned), "--latency", "false")
    assert "0.9000 of the prunable weights are zero" in capsys.readouterr().out
    main("fit", config, "--ckpt_path", str(pruned), "--trainer.max_epochs", "1")
    assert "0.9000" in capsys.readouterr().out.split("Pruned")[-1]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_shows(config):
    assert config.read_text().startswith("# ")
    callbacks = yaml.safe_load(config.read_text())["trainer"]["callbacks"]
    assert callbacks[0]["class_path"] == "lightning_prune.PruningCallback"


@pytest.mark.slow
@pytest.mark.parametrize("example", ["plain_loop", "fabric"])
def test_every_example_lands(example):
    run = run_python("-m", f"examples.{example}", "--epochs", "2")
    assert "at sparsity 0.9000" in run.stdout.splitlines()[-1]


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("transformers") and find_spec("accelerate")),
    reason="needs lightning-prune[transformers]",
)
def test_the_bert_of_transformers_is_saved_sparse_and_loses_heads_and_units(tmp_path):
    size = ["--epochs", "1", "--pieces", "64", "--folder", tmp_path]
    run = run_python("-m", "examples.hugging_face", *size)
    assert "at sparsity 0.8000" in run.stdout
    assert "weights: sparsity 0.8000 in the saved model" in run.stdout
    parameters = 2 * (2 * 16 * (3 * (64 + 1) + 64) + 64 * (2 * 64 + 1))  # of heads and units
    assert f"with {91_076 - parameters:,} of 91,076 parameters" in run.stdout
    assert (tmp_path / "small.onnx").exists()


@pytest.mark.rare
@pytest.mark.slow
def test_the_transformer_loses_heads_and_units(tmp_path):
    output = tmp_path / "transformer.onnx"
    size = ["--epochs", "2", "--width", "32", "--depth", "1", "--output", str(output)]
    run = run_python("-m", "examples.transformer", *size)
    before, after = (
        int(line.split()[1].replace(",", ""))
        for line in run.stdout.splitlines()
        if line.startswith(("pruned:", "shrunk:"))
    )
    heads, units, head_size = 4, 64, 32 // 8
    projections = heads * head_size * (3 * (32 + 1) + 32)
    assert before - after == projections + units * (2 * 32 + 1)
    assert output.exists()


@pytest.mark.rare
@pytest.mark.slow
def test_the_transformer_keeps_half_of_the_multiply_adds(tmp_path):
    size = ["--epochs", "2", "--width", "32", "--depth", "1", "--macs", "0.5"]
    run = run_python("-m", "examples.transformer", *size, "--output", str(tmp_path / "half.onnx"))
    assert "at most 52,384 of 104,768 multiply-adds, now 49,472" in run.stdout


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.parametrize(
    ("wish", "unit"), [(("--macs", "0.5"), "multiply-adds"), (("--bytes", "100000"), "bytes")]
)
def test_the_residual_network_ends_within_the_budget(wish, unit, tmp_path):
    size = ["--epochs", "2", "--width", "16", "--output", str(tmp_path / "small.onnx")]
    run = run_python("-m", "examples.budgets", *wish, *size)
    words = " ".join(run.stdout.split())
    limit, last = (
        int(text.split()[-1].replace(",", ""))
        for text in (words.partition(f" {unit}, predicted")[0], words.rpartition(f" {unit}, ")[0])
    )
    assert 0.9 * limit < last <= limit


@pytest.mark.rare
@pytest.mark.slow
def test_the_language_model_is_pruned_and_fine_tuned():
    run = run_python("-m", "examples.language_model", "--fast")
    rows = [line.split("|")[1:-1] for line in run.stdout.splitlines() if line.startswith("| ")]
    (_, *header), *models = rows
    assert [title.strip() for title in header] == ["zeros", "bits per byte", "after fine-tuning"]
    names = [(name.strip(), zeros.strip()) for name, zeros, _, _ in models]
    rules = ("magnitude", "Wanda", "Wanda, repaired", "repair")
    ways = ("pruned while it trains", *(f"pruned at once by {rule}" for rule in rules))
    assert names == [("dense", ""), *((way, zeros) for zeros in ("0.5", "2:4") for way in ways)]
    assert all(float(after) < float(before) < 8 for _, _, before, after in models)


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
def test_the_sparse_llama_is_recovered_by_adapters_and_merged_with_all_zeros():
    run = run_python("-m", "examples.lora", "--fast")
    *_, dense, pruned, recovered, merged = (line.split("|") for line in run.stdout.splitlines())
    names = [row[1].strip() for row in (dense, pruned, recovered, merged)]
    assert names == ["dense", "pruned in one shot", "recovered by LoRA", "merged under the zeros"]
    assert float(dense[2]) == 0
    assert float(pruned[2]) == float(recovered[2]) == float(merged[2]) > 0.25
    assert float(recovered[3]) < float(pruned[3])
    assert "update dropped" in run.stdout


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_accuracy_runs():
    run = run_python("benchmarks/digits_accuracy.py", "--seeds", "1", "--epochs", "6")
    assert "the price of sparsity 0.9" in run.stdout


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_budgets_lands_within_them_and_uses_them_up():
    size = ("--networks", "ResNet-18", "--scale", "0.25", "--bytes", "800000")
    forms = ("--forms", "weights, ERK", "channels, uniform")
    run = run_python("benchmarks/budgets.py", *size, *forms)
    assert run.stdout.splitlines()[-1] == "every bar is met"
    assert "| ResNet-18 | channels, uniform | `MacsBudget(keep=0.5)` |" in run.stdout


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_a_repair_runs():
    size = ["--seeds", "1", "--epochs", "4", "--networks", "perceptron"]
    run = run_python("benchmarks/repair.py", *size)
    assert "s for a million weights" in run.stdout
    assert run.stdout.splitlines()[-1] == "every bar is met"


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_zeros_in_place_runs():
    run = run_python("benchmarks/zeros_in_place.py", "--repeats", "3")
    assert "dense over sparse" in run.stdout


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_distillation_runs():
    run = run_python("benchmarks/distillation.py", "--seeds", "1", "--epochs", "2")
    assert "gain over alone" in run.stdout


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_patterns_runs():
    run = run_python("benchmarks/digits_patterns.py", "--seeds", "1", "--epochs", "1")
    assert "blocks of 4 x 1, 0.9" in run.stdout


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.parametrize("learnable", [True, False])
def test_the_benchmark_of_recipes_judges(learnable, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 512), ("t10k", 100)):
        labels = torch.randint(10, (count,), generator=generator)
        images = torch.randint(256, (count, 28, 28), generator=generator)
        if learnable:
            images = torch.zeros(count, 28, 28)
            images[torch.arange(count), 2 * labels] = 255
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", labels)
    command = ["benchmarks/mnist.py", "--root", str(tmp_path), "--seeds", "1", "--epochs", "10"]
    command += ["--csv", str(tmp_path / "runs.csv"), "--plot", str(tmp_path / "plot.png")]
    command += ["--recipes", "dense", "gradual, ERK", "gradual, global", "--sparsities", "0.95"]
    run = run_python(*command, codes=[0 if learnable else 1])
    assert run.stdout.startswith("| recipe | 0 | 0.95 |")
    assert ("NO" in run.stdout) != learnable
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 4
    assert (tmp_path / "plot.png").exists()


def write_idx(path, values):
    header = bytes((0, 0, 8, values.dim())) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(header + values.to(torch.uint8).numpy().tobytes()))


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_lottery_tickets_runs():
    run = run_python("benchmarks/lottery_ticket.py", "--seeds", "1", "--rounds", "1")
    assert run.stdout.count("winning ticket") == 1
    assert run.stderr.count("winning ticket") == 1


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_channels_runs():
    networks = ["--networks", "U-Net", "BERT", "--scale", "0.125"]
    run = run_python("benchmarks/channels.py", *networks, "--steps", "6", "--blocks", "6")
    assert "| U-Net | 0.50 |" in run.stdout
    assert "    - width of a LayerNorm: `words.weight`" in run.stdout
    assert "every bar is met" in run.stdout


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_half_the_channels_judges():
    size = ["--seeds", "1", "--epochs", "8", "--blocks", "6"]
    run = run_python("benchmarks/digits_channels.py", *size, codes=(0, 1))
    said = run.stdout.splitlines()[-4:]
    assert [line.split(":")[0].split()[-1] for line in said] == ["fast", "points", "more", "one"]
    assert run.returncode == int("NO" in run.stdout), run.stderr
    assert said[-1].endswith("as asked")
