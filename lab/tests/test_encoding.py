"""Colours of tiles are part of their features. Authority: the pixels, coloured and encoded here."""

import json
import threading

import numpy as np
import pytest
import torch

import tiling
from lab.cohort import encoding
from lab.commands.tiling import main
from lab.tests.helpers import (
    STAIN_PAIRS,
    degrees_between,
    folder_bytes,
    pixels_of,
    relative,
    stained,
    tiny_encoder,
    write_pyramid,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


def encode(cohort, *argv, verb="features"):
    encoder = str(cohort / "tiny.pt")
    precision = ("--device", "cpu", "--precision", "float32")
    return main([verb, str(cohort), "--encoder", encoder, *precision, *argv])


def encoded(network, tiles):
    with torch.no_grad():
        return network(tiling.normalise(torch.from_numpy(tiles)))


def said_of(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def stained_slides(folder):
    """slides/a.tif and b.tif: one tissue, two stains; dabs of 4 pixels on glass."""
    for name, pair in (("a", "reddish"), ("b", "bluish")):
        rgb = np.full((1280, 1600, 3), 243, np.uint8)
        pixels, _ = stained(STAIN_PAIRS[pair], n=200 * 240)
        dabs = np.kron(pixels.reshape(200, 240, 3), np.ones((4, 4, 1), np.uint8))
        rgb[200:1000, 300:1260] = dabs
        write_pyramid(folder / "slides" / f"{name}.tif", rgb)


def test_colour_is_part_of_the_features_and_of_no_tile(two_slides, capsys):
    stained_slides(two_slides)
    net = tiny_encoder(two_slides / "tiny.pt")
    folder = two_slides / "features" / "tiny"
    assert encode(two_slides) == 0
    plain, tiles = folder_bytes(folder, ".npy"), folder_bytes(two_slides / "tiles", ".npz")
    assert "stains" not in said_of(folder, "a")
    capsys.readouterr()
    assert encode(two_slides, "--colour", "macenko", "--workers", "1") == 0
    assert "2 slides are made anew: colour none -> macenko" in capsys.readouterr().out
    made = folder_bytes(folder, ".npy")
    assert made != plain
    assert folder_bytes(two_slides / "tiles", ".npz") == tiles
    means = []
    for name, pair in (("a", "reddish"), ("b", "bluish")):
        pixels, slide, coords, tile = pixels_of(two_slides, name)
        found = tiling.slide_stains(slide, coords, tile, 224, 0)
        assert degrees_between(found[0], STAIN_PAIRS[pair]).max() < 2
        side = said_of(folder, name)
        assert side["colour"] == "macenko"
        assert side["stains"]["unchanged"] == 0
        assert np.allclose(side["stains"]["vectors"], found[0], atol=1e-4)
        normal, _ = tiling.macenko(pixels, found)
        assert relative(np.load(folder / f"{name}.npy"), encoded(net, normal)) < 1e-3
        means.append((pixels.mean((0, 1, 2)), normal.mean((0, 1, 2))))
    (seen_a, normal_a), (seen_b, normal_b) = means
    assert np.abs(normal_a - normal_b).max() < 2 < 5 < np.abs(seen_a - seen_b).max()
    for path in folder.glob("*.npy"):
        path.unlink()
    assert encode(two_slides, "--workers", "4") == 0  # the colour is remembered
    assert folder_bytes(folder, ".npy") == made
    assert encode(two_slides, "--colour", "none") == 0
    assert folder_bytes(folder, ".npy") == plain


def test_of_the_next_slide_reading_has_begun_while_one_is_encoded(two_slides, monkeypatch):
    tiny_encoder(two_slides / "tiny.pt")
    begun, both = threading.Semaphore(0), []
    begin, plainly = encoding.Slide.begin, encoding.encode

    def begin_and_say(*more):
        chunks = begin(*more)
        begun.release()
        return chunks

    def wait_and_encode(*more):
        if not both:
            both.extend(begun.acquire(timeout=20) for _ in range(2))
        return plainly(*more)

    monkeypatch.setattr(encoding.Slide, "begin", begin_and_say)
    monkeypatch.setattr(encoding, "encode", wait_and_encode)
    assert encode(two_slides, "--workers", "1") == 0
    assert both == [True, True]
    for name in "ab":
        pixels, *_ = pixels_of(two_slides, name)
        want = encoded(torch.jit.load(two_slides / "tiny.pt"), pixels)
        assert relative(np.load(two_slides / "features" / "tiny" / f"{name}.npy"), want) < 1e-3


def test_a_slide_without_two_stains_keeps_its_colours_and_that_is_said(two_slides, capsys):
    stained_slides(two_slides)
    one = np.full((1280, 1600, 3), 243, np.uint8)
    one[200:900, 300:1400] = (170, 90, 150)
    write_pyramid(two_slides / "slides" / "c.tif", one)
    tiny_encoder(two_slides / "tiny.pt")
    assert encode(two_slides, "--colour", "macenko") == 0
    folder = two_slides / "features" / "tiny"
    n = len(np.load(folder / "c.npy"))
    assert n > 10
    assert said_of(folder, "c")["stains"] == {"vectors": None, "top": None, "unchanged": n}
    said = f"{n} tiles hold too little stain and keep their colours, of c"
    assert said in capsys.readouterr().out


def test_features_of_stretched_tiles_lie_beside_the_others(two_slides):
    net = tiny_encoder(two_slides / "tiny.pt")
    folder, beside = (two_slides / "features" / name for name in ("tiny", "tiny-stretch"))
    assert encode(two_slides, "--seed", "3", verb="supertiles") == 0
    plain = folder_bytes(folder, ".npy")
    assert encode(two_slides, "--colour", "stretch", verb="supertiles") == 0
    assert folder_bytes(folder, ".npy") == plain
    assert said_of(beside, "a")["colour"] == "stretch"
    pixels, *_ = pixels_of(two_slides, "a")
    want = encoded(net, tiling.stretch(pixels))
    assert relative(np.load(beside / "a.npy"), want) < 1e-3
    for step in ("features", "supertiles"):
        for name in ("tiny", "tiny-stretch"):  # but for the colour made as the others
            settings = two_slides / step / name / "settings.json"
            assert json.loads(settings.read_text())["seed"] == 3
    assert encode(two_slides) == 0
    assert folder_bytes(folder, ".npy") == plain
