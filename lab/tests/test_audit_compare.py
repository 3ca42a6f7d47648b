"""The table of an audit."""

import numpy as np
import pytest
import scipy.stats
import torch

from lab.audit.compare import over_seeds, run_audit
from lab.files import InputError, save_text
from lab.locks import release
from lab.runs import claim_folder

HEADER = "command,choice,seed,measure,value,change,seconds"
TEXTS = {"train": {"bias": "none", "k": "one for all"}}


@pytest.mark.parametrize(
    "rows",
    [
        "train,default",
        "train,default,x,R,.1,0,1",
        "train,default,0,R,.1,0,",
        "train,nosuch,0,R,.1,0,1",
        "x,default,0,R,.1,0,1",
        "train,bias,0,R,.1,0,1",
        "train,default,0,R,.1,0,1\ntrain,bias,0,HS,.1,0,1",
    ],
)
def test_a_table_with_a_row_that_is_none_of_ours_is_refused(tmp_path, rows):
    claim_folder(tmp_path, {"command": "audit"}, "audit.csv")
    save_text(tmp_path / "audit.csv", [HEADER, rows])
    with pytest.raises(InputError, match=r"audit.csv: not whole.*delete it to begin again"):
        run_audit(tmp_path, None, {}, TEXTS, range(1), {}, "")
    release()


def test_a_choice_that_cannot_be_measured_is_left_out_and_status_1_says_so(tmp_path, capsys):
    def measure(command, name, seed):
        if name == "bias":
            raise InputError("no such weights")
        return {"R": 0.25 if name == "k" else 0.5}, 0

    assert run_audit(tmp_path, measure, {"train": ["bias", "k"]}, TEXTS, range(2), {}, "") == 1
    assert capsys.readouterr().out.count("without train's bias: no such weights") == 1
    rows = (tmp_path / "audit.csv").read_text().split()[1:]
    assert [row.rsplit(",", 1)[0] for row in rows] == [
        "train,default,0,R,0.5,0",
        "train,default,1,R,0.5,0",
        "train,again,0,R,0.5,0",
        "train,again,1,R,0.5,0",
        "train,k,0,R,0.25,-0.25",
        "train,k,1,R,0.25,-0.25",
    ]
    release()


def test_a_change_that_does_not_exceed_the_floor_is_said_to_be_within_rounding(tmp_path):
    """`again` runs on another number of threads: here it changes .02 at most."""
    used = {}

    def measure(command, name, seed):
        used.setdefault(name, set()).add(torch.get_num_threads())
        value = {"default": 0.5, "again": 0.5 + (-0.02) ** (1 + seed), "bias": 0.485, "k": 0.45}
        return {"R": value[name]}, 0

    before = torch.get_num_threads()
    assert run_audit(tmp_path, measure, {"train": ["bias", "k"]}, TEXTS, range(2), {}, "") == 0
    text = (tmp_path / "audit.md").read_text()
    assert "| bias | none | -0.015 (-0.015 to -0.015) within rounding |" in text
    assert "| k | one for all | -0.050 (-0.050 to -0.050) |" in text
    assert used["default"] == used["k"] == {before} != used["again"]
    assert torch.get_num_threads() == before
    release()


def test_without_the_default_its_choices_are_not_tried(tmp_path):
    def measure(command, name, seed):
        assert name == "default"
        raise InputError("too few slides")

    with pytest.raises(InputError, match="nothing could be measured: too few slides"):
        run_audit(tmp_path, measure, {"train": ["bias"]}, TEXTS, range(2), {}, "")
    release()


def test_the_interval_over_seeds_is_student_s():
    values = [0.1, 0.3, 0.2]
    low, high = scipy.stats.t.interval(0.95, 2, 0.2, np.std(values, ddof=1) / 3**0.5)
    assert over_seeds(values, 3, "+") == f"+0.200 ({low:+.3f} to {high:+.3f})"
    assert over_seeds([4], 1) == "4.0"
