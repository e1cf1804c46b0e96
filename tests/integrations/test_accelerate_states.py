"""Loops of Accelerate under pruning: `Pruner` itself is the object that Accelerate saves."""

from importlib.util import find_spec

import pytest
import torch

from tests.commands import run_python
from tests.versions import needs_package

if not find_spec("accelerate"):
    pytest.skip("needs accelerate", allow_module_level=True)

from tests.integrations.accelerate_loop import RECIPE, compare_resumed, train

SECTION = "Other trainers"


@pytest.mark.works_with(SECTION, "Accelerate: `save_state` and `load_state`, bit for bit")
def test_a_saved_loop_resumes_bit_for_bit(tmp_path):
    compare_resumed(tmp_path)


@pytest.mark.works_with(SECTION, "Accelerate: a state is loaded before `attach`", refused=True)
def test_a_state_is_loaded_before_attach(tmp_path):
    from accelerate import Accelerator

    _, pruner = train(tmp_path, save_at=2)
    accelerator = Accelerator(cpu=True)
    accelerator.register_for_checkpointing(pruner)
    net = torch.nn.Linear(4, 4)
    pruner.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), steps=2, hook=True)
    with pytest.raises(RuntimeError, match=r"need load_state_dict\(\) before attach\(\)"):
        accelerator.load_state(tmp_path)
    pruner.detach(completed=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways",
    [
        pytest.param(
            (),
            marks=pytest.mark.works_with(
                SECTION, "Accelerate, DDP: the same masks on all processes, resumed"
            ),
            id="DDP",
        ),
        pytest.param(
            ("shards",),
            marks=[
                needs_package("accelerate", "1.15"),  # what was tried
                pytest.mark.works_with(
                    SECTION, "Accelerate, FSDP2: zeros and masks exact, resumed bit for bit"
                ),
            ],
            id="FSDP2",
        ),
    ],
)
def test_two_processes_have_the_same_masks_and_resume_bit_for_bit(ways, tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    script = ("-m", "tests.integrations.accelerate_loop", tmp_path, *ways)
    run_python(*launch, *script, environment=environment)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for part, found in first.items():
        for name, values in found.items():
            assert torch.equal(values, second[part][name]), (part, name)
    for name, mask in first["masks"].items():
        assert not first["weights"][name][~mask].any()
    kept = sum(int(mask.sum()) for mask in first["masks"].values())
    assert kept == (1 - RECIPE["sparsity"]) * sum(m.numel() for m in first["masks"].values())
