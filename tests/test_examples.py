"""Every config and every example, at small size."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_prune import cli

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_and_lands(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.logger.save_dir", str(tmp_path), "--trainer.enable_progress_bar", "no"]
    monkeypatch.setattr(
        sys, "argv", ["lightning-prune", "fit", "--config", str(config), *arguments]
    )
    cli.main()
    reached, final = capsys.readouterr().out.split("all ")[-1].split("│")[-3:-1]
    assert reached.strip() == final.strip() != "0.0000"
    assert list(tmp_path.glob("**/last.ckpt"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_shows(config):
    assert config.read_text().startswith("# ")
    callbacks = yaml.safe_load(config.read_text())["trainer"]["callbacks"]
    assert callbacks[0]["class_path"] == "lightning_prune.PruningCallback"


@pytest.mark.slow
@pytest.mark.parametrize("example", ["plain_loop", "fabric"])
def test_every_example_lands(example):
    run = subprocess.run(
        [sys.executable, "-m", f"examples.{example}", "--epochs", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "at sparsity 0.9000" in run.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_benchmark_of_accuracy_runs():
    run = subprocess.run(
        [sys.executable, "benchmarks/digits_accuracy.py", "--seeds", "1", "--epochs", "6"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the price of sparsity 0.9" in run.stdout, run.stderr
    assert run.returncode == 0


@pytest.mark.slow
def test_the_benchmark_of_zeros_in_place_runs():
    run = subprocess.run(
        [sys.executable, "benchmarks/zeros_in_place.py", "--repeats", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "dense over sparse" in run.stdout


@pytest.mark.slow
def test_the_benchmark_of_distillation_runs():
    run = subprocess.run(
        [sys.executable, "benchmarks/distillation.py", "--seeds", "1", "--epochs", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "gain over alone" in run.stdout, run.stderr
    assert run.returncode == 0
