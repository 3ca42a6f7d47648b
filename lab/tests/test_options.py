"""lab.tests.test_options"""

import errno
import os
import re

import numpy as np

import lab.commands.he2rna as commands_he2rna
import lab.commands.tiling as commands_tiling
import lab.files as lab_files
from lab.tests.helpers import fill_disk, same_runs, status_of, write_cohort


def test_a_folder_for_a_file_a_file_for_a_folder_and_what_may_not_be_written(
    two_slides, capsys, monkeypatch
):
    run = lambda *argv: status_of(capsys, commands_tiling, "tiles", two_slides, *argv)
    (two_slides / "samples.csv").mkdir()
    assert run() == (
        2,
        [
            f"error: {two_slides}/samples.csv is a folder: wanted is a table with the columns slide,patient,project"
        ],
    )
    (two_slides / "samples.csv").rmdir()
    (two_slides / "tiles").write_text("in the way")
    status, said = run()
    assert status == 2 and len(said) == 1 and f"error: {two_slides}/tiles: " in said[0]
    (two_slides / "tiles").unlink()
    (two_slides / "tiles" / "a.npz").mkdir(parents=True)
    (two_slides / "slides" / "d.tif").mkdir()  # no slide: left alone
    status, said = run()
    assert (
        status == 1
        and f"failed: a: {two_slides}/tiles/a.npz is a folder: move it away" in said
        and (two_slides / "tiles" / "b.npz").is_file()
    )
    (two_slides / "tiles" / "a.npz").rmdir()

    def refuse(path, mode="r", **more):
        if "r" not in mode and "tiles" in str(path) or "samples" in str(path):
            raise OSError(
                errno.EROFS if "r" not in mode else errno.EACCES,
                os.strerror(errno.EROFS if "r" not in mode else errno.EACCES),
                str(path),
            )
        return open(path, mode, **more)

    monkeypatch.setattr(
        lab_files, "open", refuse, raising=False
    )  # by hand: tests may run as root, whom no permission stops
    status, said = run()
    assert status == 2 and said == [f"error: {two_slides}/tiles/lock: Read-only file system"]
    (two_slides / "samples.csv").write_text("slide,patient,project\na,p,X\n")
    assert run() == (2, [f"error: {two_slides}/samples.csv: Permission denied"])


def test_a_full_disk_stops_a_training_that_goes_on_as_if_it_had_not(tmp_path, monkeypatch, capsys):
    write_cohort(tmp_path, np.random.default_rng(1), patients=6)
    argv = (
        commands_he2rna,
        "train",
        tmp_path,
        "--features",
        tmp_path / "h5",
        "--device",
        "cpu",
        *"--hidden 8 --ks 1,5 --folds 3 --valid .25 --epochs 2".split(),
    )
    count = fill_disk(monkeypatch, 0)
    assert status_of(capsys, *argv, "--name", "whole")[0] == 0
    for at in (1, 6, 9, 12, 18):
        fill_disk(monkeypatch, at)
        status, said = status_of(capsys, *argv, "--name", "cut")
        assert status in (0, 2) and (
            status == 0 or re.fullmatch(f"error: {tmp_path}/.*: No space left on device", said[-1])
        )
    monkeypatch.undo()
    assert (
        count[0] >= 18
        and status_of(capsys, *argv, "--name", "cut")[0] == 0
        and not list(tmp_path.rglob("*.tmp"))
    )
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
