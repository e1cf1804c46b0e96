"""What a training under a tolerance refuses, before the first step."""

import math

import pytest
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_prune import PruningCallback, Tolerance
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import fit
from tests.callbacks.within import Validated, fit_within


@pytest.mark.parametrize("begin", [0, 3])
def test_a_metric_that_validation_does_not_log_is_refused_before_the_first_step(begin, tmp_path):
    tolerance = Tolerance(monitor="val_f1", begin=begin)
    pruning = PruningCallback(tolerance=tolerance)
    validated = Validated(pruning)
    with pytest.raises(
        ValueError, match=r"got tolerance with monitor='val_f1'; the logged metrics are 'val_acc'"
    ):
        fit(validated, pruning=pruning, validate=True, default_root_dir=tmp_path)
    assert validated.sparsities == []


@pytest.mark.parametrize("options", [{}, {"validate": True, "limit_val_batches": 0}], ids=str)
def test_a_training_without_validation_is_refused(options, tmp_path):
    pruning = PruningCallback(tolerance=Tolerance(monitor="val_acc"))
    with pytest.raises(
        ValueError, match="need a validation with tolerance, got a training without"
    ):
        fit(pruning=pruning, default_root_dir=tmp_path, **options)


def test_averaged_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="need a training without averaged weights with tolerance"):
        fit_within(tmp_path, EMAWeightAveraging())


def test_a_dense_model_whose_metric_is_not_finite_is_refused(tmp_path):
    class Broken(Classifier):
        def validation_step(self, batch, batch_idx):
            self.log("quality", math.nan)

    with pytest.raises(
        ValueError, match="need a finite metric of the dense model, got quality=nan"
    ):
        fit_within(tmp_path, model=Broken())
