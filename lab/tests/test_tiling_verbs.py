"""lab.tests.test_tiling_verbs"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import tiling
from lab.cohort.make import make_tiles
from lab.cohort.steps import find_tiles
from lab.commands.tiling import main
from lab.files import fingerprint as files_fingerprint
from lab.tests.helpers import folder_bytes, painted, pixels_of, relative, swap, tiny_encoder


def test_mpp_is_remembered_and_leaves_slides_with_their_own_alone(two_slides, capsys):
    rgb = np.array(Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST))
    Image.fromarray(rgb).save(two_slides / "slides" / "plain.png")
    run = lambda verb, *a: main(
        [verb, str(two_slides), "--device", "cpu", "--encoder", "resnet50-stage3", *a]
    )
    assert run("features", "--weights", "random") == 1  # plain.png has no scale
    own = {p: p.stat().st_mtime_ns for p in two_slides.rglob("*.np[yz]")}
    assert run("tiles", "--mpp", "0.5") == 0 and run("features") == 0  # given once, remembered
    assert all(p.stat().st_mtime_ns == t for p, t in own.items()) and len(own) == 4
    assert run("tiles", "--mpp", "0.4") == 0
    assert "1 slides are made anew: mpp 0.5 -> 0.4" in capsys.readouterr().out and all(
        p.stat().st_mtime_ns == t for p, t in own.items()
    )
    for p in (two_slides / "slides").iterdir():  # features travel without their slides
        p.unlink()
    (two_slides / "samples.csv").write_text("slide,patient,project\na,p,X\nb,q,X\nc,r,X\n")
    assert run("supertiles") == 1 and "failed: c: no file c.*" in capsys.readouterr().err


def test_what_vanishes_meanwhile_is_that_slides_failure(two_slides, monkeypatch, capsys):
    tiny_encoder(two_slides / "tiny.pt")
    argv = [
        "features",
        str(two_slides),
        "--device",
        "cpu",
        "--encoder",
        str(two_slides / "tiny.pt"),
    ]
    find, make, fingerprint = find_tiles, make_tiles, files_fingerprint
    swap(
        monkeypatch,
        "lab.files",
        "fingerprint",
        lambda path: path.unlink() if path.stem == "a" else None,
    )  # before it is looked at
    assert main(argv) == 1 and "failed: a: " in capsys.readouterr().err
    swap(monkeypatch, "lab.files", "fingerprint", fingerprint)
    shutil.copyfile(two_slides / "slides" / "b.tif", two_slides / "slides" / "a.tif")
    swap(
        monkeypatch,
        "lab.cohort.steps",
        "find_tiles",
        lambda path, *more: (path.stem == "a" and path.unlink()) or find(path, *more),
    )  # before its tiles
    assert main(argv) == 1 and "failed: a: " in capsys.readouterr().err
    swap(monkeypatch, "lab.cohort.steps", "find_tiles", find)
    shutil.copyfile(two_slides / "slides" / "b.tif", two_slides / "slides" / "a.tif")
    swap(
        monkeypatch,
        "lab.cohort.make",
        "make_tiles",
        lambda *more: make(*more) or (two_slides / "tiles" / "a.npz").unlink() or {},
    )  # its tiles, before its features
    assert main(argv) == 1 and "tiles/a.npz was there and is gone" in capsys.readouterr().err
    swap(
        monkeypatch,
        "lab.cohort.make",
        "make_tiles",
        lambda *more: make(*more) or (two_slides / "slides" / "a.tif").unlink() or {},
    )  # the slide, before its features
    assert main(argv) == 1 and re.search("failed: a: .*a.tif", capsys.readouterr().err)
    assert [p.stem for p in (two_slides / "features").rglob("*.npy")] == ["b"]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_features_of_stretched_tiles_lie_beside_the_others(two_slides):
    net = tiny_encoder(two_slides / "tiny.pt")
    run = lambda verb, *a: main(
        [
            verb,
            str(two_slides),
            "--device",
            "cpu",
            "--encoder",
            str(two_slides / "tiny.pt"),
            "--precision",
            "float32",
            *a,
        ]
    )
    assert run("supertiles", "--seed", "3") == 0
    plain = folder_bytes(two_slides / "features" / "tiny", ".npy")
    assert run("supertiles", "--colour", "stretch") == 0
    assert folder_bytes(two_slides / "features" / "tiny", ".npy") == plain
    beside = two_slides / "features" / "tiny-stretch"
    assert (
        folder_bytes(beside, ".npy") != plain
        and json.loads((beside / "a.json").read_text())["colour"] == "stretch"
    )
    seeds = [
        json.loads((two_slides / d / name / "settings.json").read_text())["seed"]
        for d in ("features", "supertiles")
        for name in ("tiny", "tiny-stretch")
    ]
    assert seeds == [3] * 4  # but for the colour made as those
    with torch.no_grad():
        pixels = pixels_of(two_slides, "a")[0]
        assert (
            relative(
                np.load(beside / "a.npy"),
                net(tiling.normalise(torch.from_numpy(tiling.stretch(pixels)))),
            )
            < 1e-3
        )
    assert run("features") == 0 and folder_bytes(two_slides / "features" / "tiny", ".npy") == plain
