"""A folder is written by one run at a time. filelock's own tests say how its files behave."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from lab.commands.tiling import main as tiling_main
from lab.files import InputError
from lab.locks import HELD, hold, release
from lab.tests.helpers import ROOT
from lab.tests.helpers_he2rna import train, write_cohort

ELSEWHERE = "4711\nanother\n"  # what filelock writes on a host called another
HOLDER = """
import sys, time
from lab.locks import hold
hold(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(two_slides):
    """A real process that holds tiles/ of a cohort."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(two_slides / "tiles")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_hears_who_is_at_work_and_a_killed_ones_lock_is_taken_over(
    two_slides, holder, capsys
):
    folder = two_slides / "tiles"
    who = rf"tiles: process {holder.pid} on {platform.node()} since 20\d\d-.*: wait for it or stop"
    with pytest.raises(InputError, match=who):
        tiling_main(["tiles", str(two_slides)])
    assert not list(folder.glob("*.npz")) and not HELD
    holder.kill()
    assert holder.wait() == -9
    assert tiling_main(["tiles", str(two_slides)]) == 0
    said = capsys.readouterr().out
    assert f"the lock of process {holder.pid} on " in said and "is taken over" in said
    assert not (folder / "lock").exists()
    assert sorted(path.stem for path in folder.glob("*.npz")) == ["a", "b"]


def test_a_folder_is_held_once_and_swept(tmp_path):
    (tmp_path / ".a.npz.12.34.tmp").write_text("half")
    hold(tmp_path)
    hold(tmp_path)  # once more is no conflict
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert (tmp_path / "lock").read_text().startswith(f"{os.getpid()}\n")
    release(tmp_path)
    assert not list(tmp_path.iterdir()) and not HELD


@pytest.mark.parametrize("text", [ELSEWHERE, "", "no record", "1", "12\n", "99999999999\n\n", "\0"])
def test_a_lock_of_another_host_or_of_nobody_known_is_left_alone(tmp_path, text):
    lock = tmp_path / "lock"
    lock.write_text(text)
    with pytest.raises(InputError, match=r"process .* on .* since .*if it is dead, delete .*lock$"):
        hold(tmp_path)
    assert lock.read_text() == text and not HELD


def test_processes_that_share_the_slides_exclude_others_only(tmp_path):
    (tmp_path / "lock-2-of-3").write_text(ELSEWHERE)
    hold(tmp_path, (0, 3))
    release()
    for share in ((0, 1), (0, 2)):  # one process, or another division of the slides
        with pytest.raises(InputError, match="process 4711 on another"):
            hold(tmp_path, share)
        assert not HELD and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "lock-2-of-3").rename(tmp_path / "lock")
    with pytest.raises(InputError, match="process 4711 on another"):
        hold(tmp_path, (0, 3))


def test_runs_are_locked_and_given_back_however_they_end(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(0))
    run = tmp_path / "runs" / "he2rna"
    run.mkdir(parents=True)
    (run / "lock").write_text(ELSEWHERE)
    with pytest.raises(InputError, match="he2rna: process 4711 on another"):
        train(tmp_path, "--epochs", "1")
    assert not (run / "config.json").exists() and (run / "lock").exists()
    (run / "lock").unlink()
    assert train(tmp_path, "--epochs", "1") == 0
    with pytest.raises(InputError, match="epochs 1 -> 2"):
        train(tmp_path, "--epochs", "2")
    assert not list(tmp_path.rglob("lock*")) and not HELD
