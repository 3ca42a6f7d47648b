"""lab.tests.test_locks"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from lab.files import InputError, save_json
from lab.locks import HELD, hold, release, started, this_process
from lab.tests.helpers import ROOT, train, write_cohort


def test_a_lock_is_believed_stale_only_where_that_is_sure(tmp_path, capsys):
    me, lock = this_process(), tmp_path / "lock"
    at = dict(me, since="2026-01-01 00:00:00")
    for changes, taken in (
        (dict(host="another"), False),
        (dict(pids="pid:[1]"), False),
        (dict(pid=os.getppid(), started=started(os.getppid())), False),
        (dict(pid=os.getppid(), started="1"), True),
        (dict(pid=2**22 + 1), True),
        ({}, True),
    ):  # number used again; none; our own, copied
        lock.write_text(json.dumps({**at, **changes}))
        if taken:
            hold(tmp_path)
            assert json.loads(lock.read_text())["pid"] == os.getpid()
            hold(tmp_path)  # once more is no conflict
            release(tmp_path)
            assert not list(tmp_path.iterdir()) and not HELD
        else:
            with pytest.raises(
                InputError,
                match="delete .*lock if it is dead" if "pid" not in changes else "stop it",
            ):
                hold(tmp_path)
            assert json.loads(lock.read_text()) == {**at, **changes} and not HELD
    no_pid = {
        k: v for k, v in at.items() if k != "pid"
    }  # edited by hand; "": just being made, or the disk was full
    for text in (
        "",
        "[1, 2]",
        "no json",
        "\xff\0",
        "null",
        '{"host": [], "pids": {}, "pid": "x"}',
        json.dumps(no_pid),
        *(json.dumps({**at, "pid": pid}) for pid in ("12", [1], -1, 0, 1.5, None, 2**80)),
    ):
        lock.write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match="delete .*lock if it is dead, which can't be told"):
            hold(tmp_path)
        assert lock.read_text(encoding="latin-1") == text and not HELD
    lock.write_text("")
    os.utime(lock, (time.time() - 61,) * 2)  # killed between making it and writing it
    capsys.readouterr()
    hold(tmp_path)
    assert (
        json.loads(lock.read_text())["pid"] == os.getpid()
        and "the lock of process ?, killed after an unknown time" in capsys.readouterr().out
    )
    release(tmp_path)


def test_of_two_that_take_over_a_stale_lock_one_gets_it(tmp_path):
    (tmp_path / "lock").write_text(json.dumps(dict(this_process(), pid=2**22 + 1, since="x")))
    ask = "try:\n tiling.hold(sys.argv[1]); print('held', flush=True)\nexcept ValueError:\n print('refused', flush=True)\nsys.stdin.readline()"
    several = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys\nfrom lab import locks as tiling\nsys.stdin.readline()\n" + ask,
                str(tmp_path),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    for process in several:
        process.stdin.write("go\n")
        process.stdin.flush()
    words = []
    for process in several:
        line = process.stdout.readline()
        words.append(process.stdout.readline() if "taken over" in line else line)
    for process in several:
        process.communicate("end\n")
    assert sorted(words) == ["held\n", "refused\n"]


def test_runs_are_locked_and_given_back_however_they_end(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(0))
    run = tmp_path / "runs" / "he2rna"
    run.mkdir(parents=True)
    save_json(run / "lock", dict(this_process(), host="another", since="2026-01-01 00:00:00"))
    with pytest.raises(InputError, match="he2rna: process .* on another"):
        train(tmp_path, "--epochs", "1")
    assert not (run / "config.json").exists() and (run / "lock").exists()
    (run / "lock").unlink()
    assert train(tmp_path, "--epochs", "1") == 0
    with pytest.raises(InputError, match="epochs 1 -> 2"):
        train(tmp_path, "--epochs", "2")
    assert not list(tmp_path.rglob("lock*")) and not HELD
