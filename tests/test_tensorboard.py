import shutil

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from selenium.webdriver.support.wait import WebDriverWait

from docs.screenshot import CHARTS, browser, open_page, tensorboard
from examples.digits import DigitsClassifier, DigitsDataModule
from lightning_prune import PruningCallback, SparsityMonitor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Chromium and its driver",
    ),
]


def wait_for(driver, selector, condition):
    """Return the number of elements that meet the condition, shadow roots included, once > 0."""
    script = f"""
        const all = root => [
            ...root.querySelectorAll("{selector}"),
            ...[...root.querySelectorAll("*")].flatMap(e => e.shadowRoot ? all(e.shadowRoot) : []),
        ];
        return all(document).filter(e => {condition}).length;
    """
    return WebDriverWait(driver, 60).until(lambda driver: driver.execute_script(script))


def test_the_curves_the_layout_the_picture_and_the_table_are_seen_in_a_browser(tmp_path):
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path),
        callbacks=[PruningCallback(sparsity=0.9), SparsityMonitor(quality="val_acc")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=5,
    )
    trainer.fit(DigitsClassifier(), DigitsDataModule())
    with tensorboard(tmp_path) as url, browser() as driver:
        open_page(driver, url, "scalars", "sparsity", "sparsity_target", "val_acc")

        text = open_page(driver, url, "custom_scalars", "pruning", *CHARTS, "Matches (4)")
        assert "Matches (0)" not in text
        curves = wait_for(driver, "path.line", "e.getAttribute('d')?.length > 100")
        assert curves >= 2 + 4 + 2

        open_page(driver, url, "images", "val_acc_over_sparsity")
        assert wait_for(driver, "img", "e.naturalWidth > 100") == 1

        open_page(driver, url, "text", "net.8.weight", "64 x 1024", "0.9000")
