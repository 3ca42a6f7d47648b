"""histcode.py probe: ridge regression of the cells in a tile on frozen features."""

import gzip
import shutil

import numpy as np
import pytest
import torch

from lab.cohort.places import read_places
from lab.commands.histcode import main
from lab.files import InputError
from lab.histcode.probe import cell_content, linear_probe
from lab.ridge import r_squared
from lab.tests.helpers import copy_of, read_csv, swap
from lab.tests.helpers_histcode import pretrain, ridge_at


@pytest.fixture
def twenty_patients():
    """Features x (600, 12) of 20 patients, a column that is linear in them, and the patients."""
    rng = np.random.default_rng(0)
    patients = np.repeat([f"P{i}" for i in range(20)], 30)
    x = rng.normal(size=(600, 12)) + 2 * rng.normal(size=(20, 12)).repeat(30, 0)
    return x, x @ rng.normal(size=12), patients


def test_the_probe_finds_what_is_linear_and_nothing_else(twenty_patients):
    x, signal, patients = twenty_patients
    rng = np.random.default_rng(1)
    noise = rng.normal(size=600)
    y = np.stack([signal, signal + signal.std() * noise, noise], 1)
    r2 = linear_probe(x, y, patients)
    assert r2[0] > 0.999 and 0.4 < r2[1] < 0.55 and r2[2] < 0.03
    order = rng.permutation(600)  # of the rows does not matter
    assert np.allclose(linear_probe(x[order], y[order], patients[order]), r2, atol=1e-6)


def test_the_probe_does_not_learn_who_a_patient_is():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 30)
    who = np.eye(20)[patients] + 0.01 * rng.normal(size=(600, 20))
    offset = rng.normal(size=(20, 1)).repeat(30, 0)
    fitted = r_squared(offset, ridge_at(who, offset, (1.0,), who)[0])
    assert fitted[0] > 0.9 and linear_probe(who, offset, patients)[0] < 0.2


def test_cell_content_of_points_and_spots(tmp_path):
    coords, tile = np.array([[0, 0], [10, 0], [20, 0]]), 10.0
    (tmp_path / "points").mkdir()
    (tmp_path / "spots").mkdir()
    (tmp_path / "points" / "a.csv").write_text("x,y,cell\n1,1,T\n2,3,T\n12,5,B\n99,99,T\n")
    with gzip.open(tmp_path / "spots" / "b.csv.gz", "wt") as f:
        f.write("x,y,fraction:T,fraction:B,CD3D\n5,5,.2,.8,9\n6,6,.4,.6,9\n")
        f.write("25,5,1,0,9\n99,9,.5,.5,1\n")
    known = (read_places(tmp_path, name, 0.5) for name in "abc")
    a, b, c = (cell_content(*places, coords, tile) for places in known)
    assert {kind: v.tolist() for kind, v in a.items()} == {"T": [2, 0, 0], "B": [0, 1, 0]}
    assert b.keys() == {"T", "B"} and c is None
    assert np.allclose(b["T"], [0.3, np.nan, 1], equal_nan=True)
    assert np.allclose(b["B"], [0.7, np.nan, 0], equal_nan=True)


def probe(cohort, *argv):
    return main(["probe", str(cohort), *map(str, argv), "--device", "cpu"])


@pytest.fixture(scope="module")
def pretrained_once(unlabelled_once, tmp_path_factory):
    """A cohort with the run of an encoder."""
    cohort = tmp_path_factory.mktemp("pretrained") / "c"
    shutil.copytree(unlabelled_once, cohort, symlinks=True)
    assert pretrain(cohort, "--epochs", "1", "--name", "probed") == 0
    return cohort


pretrained = copy_of("pretrained_once")


@pytest.fixture
def probed(pretrained):
    return pretrained / "runs" / "probed" / "probed.pt"


def test_probe_prints_a_row_for_each_encoder(pretrained, probed, tmp_path, monkeypatch, capsys):
    def quick(net, seed):  # calibrate takes seconds
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        return net.eval()

    swap(monkeypatch, "lab.weights", "calibrate", quick)
    assert probe(pretrained, "random", probed, "--csv", tmp_path / "t.csv") == 0
    assert "36 px" in capsys.readouterr().out
    rows = read_csv(tmp_path / "t.csv")
    assert [row["encoder"] for row in rows] == ["random", str(probed)]
    assert {"lymphocyte", "stroma", "tumour"} < set(rows[0])
    assert all(0 < float(row["between"]) < 1 for row in rows)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--tile-um", "300"], "learned from tiles of .*300: --tile-um"),
        (["--colour", "macenko"], "leave it out"),
        (["--tile-px", "0"], "--tile-px 0: must lie between 32 and 2048"),
        (["--tile-px", "10000"], "--tile-px 10000: must lie between 32 and 2048"),
        (["--tiles-per-slide", "-1"], "--tiles-per-slide -1: must lie"),
        (["--csv", "."], "a folder; wanted is the name"),
        (["nowhere.pt"], "nowhere.pt: no such file"),
        (["{cohort}/samples.csv"], "not a whole encoder file"),
        (["{run}/state.pt"], "no encoder's checkpoint"),
    ],
)
def test_probe_says_one_line_and_cuts_no_tile(pretrained, probed, argv, words):
    tiles = pretrained / "tiles"
    before = {path: path.read_bytes() for path in tiles.glob("*.npz")}
    argv = [word.format(cohort=pretrained, run=probed.parent) for word in argv]
    with pytest.raises(InputError, match=words):
        probe(pretrained, probed, *argv)
    assert {path: path.read_bytes() for path in tiles.glob("*.npz")} == before
