"""Tables, pictures and histograms in Weights & Biases and MLflow, by the libraries themselves."""

import csv
from pathlib import Path

import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from lightning_prune import PruningCallback, SparsityMonitor


@pytest.fixture
def train(make_model, make_trainer, loader):
    """Train with a logger that shows more than numbers."""

    def run(logger):
        monitor = SparsityMonitor(quality="val_acc", histograms_every=1)
        pruning = PruningCallback(sparsity=0.75)
        make_trainer(monitor, pruning, logger=logger).fit(make_model(), loader, loader)

    return run


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """The library, which writes to a folder and to nowhere else."""
    library = pytest.importorskip("wandb", reason="needs wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield library
    library.finish()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_and_biases_has_media(train, wandb, tmp_path):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logged = []
    run = logger.experiment
    log = run.log
    run.log = lambda metrics, **options: (logged.append(metrics), log(metrics, **options))
    train(logger)
    values = {name: value for metrics in logged for name, value in metrics.items()}
    table = values["sparsity"]
    assert isinstance(table, wandb.Table)
    assert table.columns[0] == "tensor"
    assert [row[0] for row in table.data] == ["net.0.weight", "net.2.weight", "all"]
    (picture,) = values["val_acc_over_sparsity"]
    assert isinstance(picture, wandb.Image)
    for layer in ("net.0.weight", "net.2.weight"):
        assert isinstance(values[f"kept_weights/{layer}"], wandb.Histogram)
    assert isinstance(values["recipe"], wandb.Html)
    assert run.config["pruning/sparsity"] == 0.75
    assert run.config["pruning/schedule"] == "PolynomialSchedule"


@pytest.mark.filterwarnings("ignore")  # of the library about its own parts
def test_mlflow_has_artifacts(train, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs mlflow or mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "runs"
    logger = MLFlowLogger(tracking_uri=f"file:{folder}")
    train(logger)
    run = logger.experiment.get_run(logger.run_id)
    assert run.data.params["pruning/sparsity"] == "0.75"
    assert run.data.params["pruning/schedule"] == "PolynomialSchedule"
    assert run.data.metrics["sparsity"] == run.data.metrics["pruning/sparsity/overall"] == 0.75
    artifacts = folder / logger.experiment_id / logger.run_id / "artifacts"
    rows = list(csv.DictReader((artifacts / "sparsity.csv").read_text().splitlines()))
    assert [row["tensor"] for row in rows] == ["net.0.weight", "net.2.weight", "all"]
    assert "PolynomialSchedule" in (artifacts / "recipe.yaml").read_text()
    pictures = sorted(path.relative_to(artifacts) for path in artifacts.rglob("*.png"))
    assert pictures == [
        Path("kept_weights/00000010.png"),
        Path("kept_weights/00000020.png"),
        Path("val_acc_over_sparsity.png"),
    ]
