"""A finished run, read again: what is no run, or not finished, is told."""

import json
import shutil

import pytest

from lab.files import InputError
from lab.histcode.runs import load_run


def test_a_folder_that_is_no_finished_run_is_told(changed_once, tmp_path):
    run = tmp_path / "c" / "runs" / "r"
    shutil.copytree(changed_once / "runs" / "linear", run)
    whole = (run / "config.json").read_text()
    config = json.loads(whole)
    del config["id"]  # which holds for what was written with it
    for text, words in (
        ({**config, "version": 0}, "version 0 of this program's files, this one reads version 1"),
        ({**config, "command": "pretrain"}, "not a run on slides"),
        ({**config, "command": "diagnose", "bags": "x.csv"}, "not a run on slides"),
    ):
        (run / "config.json").write_text(json.dumps(text))
        with pytest.raises(InputError, match=words):
            load_run(run)
    (run / "config.json").write_text(whole)
    assert load_run(run)["cohort"] == changed_once  # the copy has no samples.csv: where it was
    with pytest.raises(InputError, match=r"--pooling max: .* is a run of expression"):
        load_run(run, "max")
    fold_of = load_run(run)["fold_of"]
    assert sorted(map(tuple, fold_of.values())) == sorted((f,) for f in range(3) for _ in range(3))
    for name in ("report.md", "fold1.pt"):
        data = (run / name).read_bytes()
        (run / name).unlink()
        with pytest.raises(
            InputError, match=f"{name} is missing: the run is not finished; the command that began"
        ):
            load_run(run)
        (run / name).write_bytes(data)
    for folder in (tmp_path, changed_once, tmp_path / "nowhere"):
        with pytest.raises(
            InputError, match="not a run on slides of diagnose or expression; give a folder such as"
        ):
            load_run(folder)
