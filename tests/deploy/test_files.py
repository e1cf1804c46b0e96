"""Files are written whole or not at all, and a file that cannot be written is found before."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_prune import Sensitivity, export_onnx, quantize_onnx, report, save_sparse
from lightning_prune.deploy.files import check_output_file, replace_file, replace_files


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_disk():
    """Let no file grow beyond 2 KiB, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def listed():
    return sorted(str(path) for path in Path().rglob("*"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_a_write_that_is_interrupted_leaves_the_older_file_alone(error):
    def write():
        with replace_file("file") as file:
            file.write_text("half")
            raise error

    Path("file").write_text("older")
    with pytest.raises(error):
        write()
    assert listed() == ["file"]
    assert Path("file").read_text() == "older"


def test_new_folders_are_made_with_the_file_and_not_without():
    with pytest.raises(ValueError, match="stop"), replace_file("new/folder/file"):
        raise ValueError("stop")
    assert listed() == []
    with replace_file("new/folder/file") as file:
        file.write_text("whole")
    assert listed() == ["new", "new/folder", "new/folder/file"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_is_replaced_and_the_linked_file_stays(link):
    Path("other").write_text("other")
    link("other", "file")
    with replace_file("file") as file:
        file.write_text("new")
    assert Path("other").read_text() == "other"
    assert Path("file").read_text() == "new"


def test_the_new_file_has_the_permissions_of_the_older_one():
    Path("file").touch(mode=0o600)
    with replace_file("file") as file:
        file.touch()
    assert Path("file").stat().st_mode & 0o777 == 0o600


def test_of_several_files_all_are_replaced_or_none():
    def write(last):
        with replace_files([Path("first"), Path("last")]) as (one, other):
            one.write_text("new")
            other.write_text(last)

    Path("first").write_text("older")
    with pytest.raises(TypeError):
        write(3)
    assert listed() == ["first"]
    assert Path("first").read_text() == "older"
    write("new")
    assert [Path(name).read_text() for name in listed()] == ["new", "new"]


def test_a_check_leaves_nothing():
    Path("file").write_text("older")
    for path in ("file", "new/folder/file", "absent/../file"):
        assert check_output_file(path, ckpt_path=None) == Path(path)
    assert listed() == ["file"]
    assert Path("file").read_text() == "older"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".", "need the name of a file to write, got the folder output='.'"),
        (os.devnull, "need the name of a file to write, got the device output="),
        ("protected", "need a file that may be replaced, got the write-protected output='protect"),
        ("source", "need an output other than ckpt_path, got output='source'"),
        ("hard", "need an output other than ckpt_path, got output='hard'"),
        ("soft", "need an output other than ckpt_path, got output='soft'"),
        ("source/file", "can be written, got output='source/file': Not a directory"),
        ("f" * 300, "can be written, got output='f{300}': File name too long"),
        ("/proc/new/file", "can be written, got output='/proc/new/file': "),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_reason(path, reason):
    Path("source").touch()
    Path("protected").touch(mode=0o444)
    os.link("source", "hard")
    os.symlink("source", "soft")
    with pytest.raises(ValueError, match=reason):
        check_output_file(path, ckpt_path="source")


def layers(count=1):
    return nn.Sequential(*[nn.Linear(30, 30) for _ in range(count)])


def write_onnx(path):
    export_onnx(layers(), path, example=torch.ones(2, 30))


def write_int8(path):
    if not Path("floats.onnx").exists():
        write_onnx("floats.onnx")
    quantize_onnx("floats.onnx", path, [torch.ones(2, 30)], reduce_range=False)


def write_report(path):
    report(layers(9), torch.ones(2, 30), latency=False).write(Path(path))


def write_sensitivity(path):
    metrics = {f"net.{index}.weight": {0.5: 0.9, 0.9: 0.8} for index in range(40)}
    found = Sensitivity(monitor="val_acc", mode="max", dense=0.9, metrics=metrics)
    found.write(Path(path).parent, tolerance=0.1, plot=False)


WRITERS = {
    "a.safetensors": lambda path: save_sparse(layers(), path),
    "a.onnx": write_onnx,
    "a-int8.onnx": write_int8,
    "report.json": write_report,
    "sensitivity.csv": write_sensitivity,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_every_older_file_as_it_was(name, request):
    WRITERS[name](f"out/{name}")
    before = {path: Path(path).read_bytes() for path in listed() if Path(path).is_file()}
    assert max(map(len, before.values())) > 2048
    request.getfixturevalue("small_disk")
    with pytest.raises(OSError, match="File too large: 'out/"):
        WRITERS[name](f"out/{name}")
    assert {path: Path(path).read_bytes() for path in listed() if Path(path).is_file()} == before


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_says_that_it_cannot_write(name):
    for file in ("out", "floats.onnx"):
        Path(file).touch()
    with pytest.raises(ValueError, match=r"need a folder to write to|that can be written, got "):
        WRITERS[name](f"out/{name}")
    assert Path("out").read_text() == ""


def test_a_file_that_cannot_be_written_is_found_before_the_model_runs():
    class Model(nn.Module):
        def forward(self, values):
            raise AssertionError

    for path in (".", "f" * 300):
        with pytest.raises(ValueError, match=r"got (the folder )?path="):
            export_onnx(Model(), path, example=torch.ones(2))


def test_a_file_is_not_quantized_onto_itself():
    Path("a.onnx").write_text("floats")
    os.link("a.onnx", "b.onnx")
    with pytest.raises(ValueError, match=r"need an output other than path, got output='b\.onnx'"):
        quantize_onnx("a.onnx", "b.onnx", [torch.ones(2, 30)])
    assert Path("a.onnx").read_text() == "floats"
