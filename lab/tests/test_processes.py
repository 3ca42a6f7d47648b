"""Several processes: of an array job, which share the slides, and of torchrun, which meet."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lab.commands.tiling import main as tiling_main
from lab.files import InputError
from lab.histcode.processes import SharedBatchNorm
from lab.processes import by_first, join_processes, of_all, one_voice, say, share_of_slides
from lab.tests.helpers import ROOT, read_csv, swap, tiny_encoder


def as_process(monkeypatch, rank, world):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    "rank, world, words",
    [
        (None, 3, "RANK= WORLD_SIZE=3 in the environment: wanted are both"),
        (1, None, "RANK=1 WORLD_SIZE= in"),
        (3, 3, "RANK=3 WORLD_SIZE=3 in"),
        (-1, 3, "RANK=-1"),
        ("x", 3, "RANK=x"),
    ],
)
def test_half_an_environment_is_refused(monkeypatch, rank, world, words):
    as_process(monkeypatch, rank, world)
    with pytest.raises(InputError, match=words):
        share_of_slides()


def test_one_process_is_alone(monkeypatch):
    as_process(monkeypatch, None, None)
    assert share_of_slides() == join_processes() == (0, 1)
    assert of_all("a") == ["a"] and by_first(lambda: "b") == "b"


def test_processes_that_cannot_see_each_other_are_refused(monkeypatch):
    as_process(monkeypatch, 0, 2)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match=r"no MASTER_ADDR: .*start them with torchrun"):
        join_processes()
    o = argparse.Namespace(verb="predict")
    with (
        pytest.raises(InputError, match="predict is one process; several share train, msi"),
        one_voice(o, ("train", "msi")),
    ):
        pass


def test_batch_norm_over_processes_is_torchs(tmp_path):
    """nn.BatchNorm2d, in a world of one process: outputs and running statistics."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        ours, theirs = SharedBatchNorm(4), torch.nn.BatchNorm2d(4)
        for i in range(3):
            x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(i)) * 2 + i
            assert torch.allclose(ours(x), theirs(x), atol=1e-5)
        for name, value in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[name], value, atol=1e-5), name
        assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)
    finally:
        dist.destroy_process_group()


def talk():
    """What a child process does: see the others, answer, print as one; then be refused as one."""
    rank, world = join_processes()
    o = argparse.Namespace(verb="train")
    with one_voice(o, ("train",)):
        assert o.share == (rank, world) == (rank, 2)
        assert of_all(np.arange(rank + 1).tolist()) == [[0], [0, 1]]
        print(f"only once {by_first(lambda: os.environ['RANK'])}\n", end="")
        say(f"process {rank}")

        def refuse():
            raise InputError("no such thing")

        by_first(refuse)


def leave(path):
    """What a child process does: the first works on while the second has nothing more to do."""
    with one_voice(argparse.Namespace(verb="train"), ("train",)):
        if os.environ["RANK"] == "0":
            time.sleep(0.5)
            path.touch()
    assert path.exists(), "left before the first was ready"


def two_processes(*argv):
    """This file run by torchrun as two processes."""
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 -m lab.tests.test_processes"
    return subprocess.run(
        [sys.executable, *command.split(), *argv], capture_output=True, text=True, cwd=ROOT
    )


def test_processes_of_a_command_that_ends_well_leave_together(tmp_path):
    done = two_processes(tmp_path / "ready")
    assert done.returncode == 0, done.stderr


def test_of_two_processes_one_speaks_and_one_refuses():
    done = two_processes()
    assert done.returncode != 0
    said = done.stdout.splitlines()
    assert sorted(said) == ["only once 0", "process 0", "process 1"]
    assert done.stderr.count("error: no such thing") == 1 and done.stderr.count("exitcode  : 2")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_processes_share_the_slides_out(two_slides, tmp_path, monkeypatch):
    """As cluster arrays start them: together they make what one process makes, each slide once."""
    from lab.cohort.tiles import find_tiles

    tiny_encoder(tmp_path / "tiny.pt")
    slides = two_slides / "slides"
    for name in "cd":
        shutil.copyfile(slides / "a.tif", slides / f"{name}.tif")
    (slides / "e.tif").write_bytes(b"broken")
    one = tmp_path / "one"
    shutil.copytree(slides, one / "slides")
    options = ["--device", "cpu", "--encoder", str(tmp_path / "tiny.pt")]
    assert tiling_main(["supertiles", str(one), *options]) == 1

    read = []

    def find(path, name, *more):
        read.append(name)
        return find_tiles(path, name, *more)

    swap(monkeypatch, "lab.cohort.tiles", "find_tiles", find)
    status = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        status.append(tiling_main(["supertiles", str(two_slides), *options]))
    assert status == [0, 1, 0]  # slide e is the second process's
    assert sorted(read) == ["a", "b", "c", "d", "e"] and not list(two_slides.rglob("lock*"))
    failed = two_slides / "supertiles" / "failed-1-of-3.csv"
    assert [row["slide"] for row in read_csv(failed)] == ["e"]

    as_process(monkeypatch, None, None)  # one process again: nothing is made anew
    assert tiling_main(["supertiles", str(two_slides), *options]) == 1
    assert not list(two_slides.rglob("failed-*")) and len(read) == 6

    def made(cohort):
        files = {}
        for folder in ("tiles", "features", "supertiles"):
            for path in (cohort / folder).rglob("*.np[yz]"):
                files[path.relative_to(cohort)] = path.read_bytes()
        return files

    assert made(two_slides) == made(one) and len(made(one)) == 3 * 4


if __name__ == "__main__":
    from lab.commands.start import run

    run(lambda: partial(leave, Path(sys.argv[1])) if sys.argv[1:] else talk)
