"""Plain loops of Accelerate, and processes that it launches."""

import socket
import sys
from importlib.util import find_spec

import pytest
import torch

from lightning_prune import Pruner
from tests.commands import run_command, run_python
from tests.engine.training import OPTIMIZERS, STEPS, Net, pruned_weights
from tests.hooks import hooks
from tests.versions import needs_package

if not (find_spec("transformers") and find_spec("accelerate")):
    pytest.skip("needs lightning-prune[transformers]", allow_module_level=True)

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from transformers import BertForSequenceClassification


@pytest.mark.parametrize("by_hook", [True, False], ids=["hook", "line"])
def test_a_loop_of_accelerate_needs_no_line_between_backward_and_step(by_hook):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    net = Net()
    model, optimizer = accelerator.prepare(net, OPTIMIZERS["adamw"](net.parameters()))
    pruner = Pruner(sparsity=0.75)
    pruner.attach(model, optimizer, steps=STEPS, hook=by_hook)
    for _ in range(3 * STEPS):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.randn(8, 4, 8)).square().mean())
            if accelerator.sync_gradients and not by_hook:
                pruner.before_step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        assert not pruned_weights(net, pruner).any()
    pruner.detach()
    assert pruner.steps == [STEPS]
    assert pruner.sparsity == 0.75
    assert not hooks(optimizer.optimizer)


def test_a_step_that_the_scaler_of_accelerate_skips_is_not_counted():
    accelerator = Accelerator(cpu=True)
    net = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = AcceleratedOptimizer(OPTIMIZERS["adamw"](net.parameters()), scaler=scaler)
    pruner = Pruner(sparsity=0.75)
    pruner.attach(net, optimizer, steps=STEPS - 1, hook=True)
    for step in range(STEPS):
        scaler.scale(net(torch.randn(8, 4, 8)).square().mean()).backward()
        if step == 4:
            net[0].weight.grad[0, 0, 0] = float("inf")
        optimizer.step()
        assert optimizer.step_was_skipped == (step == 4)
        optimizer.zero_grad()
    pruner.detach()
    assert pruner.steps == [STEPS - 1]
    assert pruner.sparsity == 0.75
    assert accelerator.num_processes == 1


@pytest.mark.works_with("Other trainers", "`accelerate launch` on two processes: the same masks")
@pytest.mark.slow
def test_processes_that_accelerate_launches_have_the_same_masks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Without mpirun, only --multi_gpu starts several processes. They train on the CPU all the same.
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu")
    options = ("--num_processes", "2", "--num_machines", "1", "--main_process_port", port)
    script = (
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "-m",
        "tests.integrations.launched",
        str(tmp_path),
    )
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    run_command(*launch, *options, *script, environment=environment)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for way, found in first.items():
        for part in ("masks", "weights"):
            for name, values in found[part].items():
                assert torch.equal(values, second[way][part][name]), (way, name)
        masks = found["masks"].values()
        kept = sum(int(mask.sum()) for mask in masks)
        assert kept == 0.2 * sum(mask.numel() for mask in masks)
    assert first["loop"]["steps"] == [6 // 2]
    assert (tmp_path / "checkpoint-6" / "pruning.pt").exists()


@pytest.mark.works_with("Other trainers", "Trainer of transformers, FSDP2: resumed bit for bit")
@needs_package("accelerate", "1.15")  # what was tried
@pytest.mark.slow
def test_shards_in_the_trainer_of_transformers_resume_bit_for_bit(tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    script = ("-m", "tests.integrations.sharded_trainer", tmp_path)
    run_python(*launch, *script, environment=environment)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for kind, found in first.items():
        for name, mask in found["masks"].items():
            assert torch.equal(mask, second[kind]["masks"][name]), (kind, name)
            assert not found["weights"][name][~mask].any()
        masks = found["masks"].values()
        assert sum(int(mask.sum()) for mask in masks) == 0.2 * sum(m.numel() for m in masks)
    saved = BertForSequenceClassification.from_pretrained(
        tmp_path / "FULL_STATE_DICT" / "killed" / "checkpoint-6"
    )
    for name, values in saved.state_dict().items():
        assert torch.equal(values, first["FULL_STATE_DICT"]["weights"][name]), name
