"""lab.tests.test_histcode_probe"""

import gzip

import numpy as np
import pytest
import torch

import stats
from lab.commands.histcode import main
from lab.files import InputError
from lab.histcode.probe import cell_content, linear_probe
from lab.tests.helpers import pretrain, read_csv, ridge_at, swap


def test_the_probe_finds_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    patients = np.repeat([f"P{i}" for i in range(20)], 30)
    x = rng.normal(size=(600, 12)) + rng.normal(size=(20, 12)).repeat(30, 0) * 2
    signal = x @ rng.normal(size=12)
    y = np.stack(
        [
            signal,
            signal + signal.std() * rng.normal(size=600),
            rng.normal(size=600),
            rng.normal(size=20).repeat(30),
        ],
        1,
    )
    r2 = linear_probe(x, y, patients)
    assert (
        r2[0] > 0.999 and 0.4 < r2[1] < 0.55 and r2[2] < 0.03 and r2[3] < 0.15
    )  # a patient's own offset can't be learned from others
    who = (patients[:, None] == np.unique(patients)).astype(float) + 0.01 * rng.normal(
        size=(600, 20)
    )
    assert (
        linear_probe(who, y[:, 3:], patients)[0]
        < 0.2
        < stats.pearson(
            *[v[:, None] for v in (ridge_at(who, y[:, 3:], (1.0,), who)[0, :, 0], y[:, 3])]
        )[0]
        ** 2
    )
    order = rng.permutation(600)
    assert np.allclose(linear_probe(x[order], y[order], patients[order]), r2, atol=1e-6)


def test_cell_content_of_points_and_spots(tmp_path):
    coords, tile = np.array([[0, 0], [10, 0], [20, 0]]), 10.0
    (tmp_path / "points").mkdir(), (tmp_path / "spots").mkdir()
    (tmp_path / "points" / "a.csv").write_text("x,y,cell\n1,1,T\n2,3,T\n12,5,B\n99,99,T\n")
    with gzip.open(tmp_path / "spots" / "b.csv.gz", "wt") as f:
        f.write(
            "x,y,fraction:T,fraction:B,CD3D\n5,5,.2,.8,9\n6,6,.4,.6,9\n25,5,1,0,9\n99,9,.5,.5,1\n"
        )
    a, b = (cell_content(tmp_path, n, coords, tile, 0.5) for n in "ab")
    assert {k: v.tolist() for k, v in a.items()} == {"T": [2, 0, 0], "B": [0, 1, 0]}
    assert (
        np.allclose(b["T"], [0.3, np.nan, 1], equal_nan=True)
        and np.allclose(b["B"], [0.7, np.nan, 0], equal_nan=True)
        and len(b) == 2
    )
    assert cell_content(tmp_path, "c", coords, tile, 0.5) is None
    (tmp_path / "points" / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="c.csv: no columns x and y"):
        cell_content(tmp_path, "c", coords, tile, 0.5)


def test_probe_prints_a_row_for_each_encoder(unlabelled, tmp_path, monkeypatch, capsys):
    assert pretrain(unlabelled, "--epochs", "1", "--name", "probed") == 0
    path = unlabelled / "runs" / "probed" / "probed.pt"
    capsys.readouterr()
    probe = lambda *argv: main(["probe", str(unlabelled), *argv, "--device", "cpu"])

    def quick(net, seed):  # calibrate takes seconds
        for m in net.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.momentum = None
        return net.eval()

    swap(monkeypatch, "lab.weights", "calibrate", quick)
    assert probe("random", str(path), "--csv", str(tmp_path / "t.csv")) == 0
    out = capsys.readouterr().out
    assert "36 px" in out and [r["encoder"] for r in read_csv(tmp_path / "t.csv")] == [
        "random",
        str(path),
    ]
    assert {"lymphocyte", "stroma", "tumour"} < set(read_csv(tmp_path / "t.csv")[0])
    before = {p: p.read_bytes() for p in (unlabelled / "tiles").glob("*.npz")}
    for argv, words in (
        (("--tile-um", "300"), "learned from tiles of .* --tile-um is 300"),
        (("--colour", "macenko"), "leave --colour out"),
        *(
            (("--tile-px", px), f"--tile-px {px}.*: must lie between 32 and 2048")
            for px in ("0", "-3", "10000")
        ),
        (("--tiles-per-slide", "-1"), "--tiles-per-slide -1: must lie"),
        (("--csv", str(tmp_path)), "a folder; wanted is the name"),
    ):
        with pytest.raises(InputError, match=words):
            probe(str(path), *argv)
    assert {
        p: p.read_bytes() for p in (unlabelled / "tiles").glob("*.npz")
    } == before  # and no tile was cut
    with pytest.raises(InputError, match="nowhere.pt: no such file"):
        probe("nowhere.pt")
    with pytest.raises(InputError, match="not a whole encoder file"):
        probe(str(unlabelled / "samples.csv"))
    with pytest.raises(
        InputError, match="no encoder's checkpoint|the checkpoint has no|of version"
    ):
        probe(str(unlabelled / "runs" / "probed" / "state.pt"))
