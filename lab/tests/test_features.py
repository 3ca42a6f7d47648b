"""lab.tests.test_features"""

import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lab.cohort.expression import read_expression
from lab.cohort.features import load_features
from lab.cohort.steps import tiles_of
from lab.exchange.clam import edge_said, features_made_by, foreign, say_twice, tile_edge
from lab.files import InputError
from lab.runs import load_checkpoint
from lab.tests.helpers import WHOLE_TILES, tile_cloud


def test_h5_features(tmp_path):
    rng = np.random.default_rng(0)
    features, coords = rng.normal(size=(9, 5)).astype(np.float32), tile_cloud(9)
    for name, f, c in (
        ("flat", features, coords),
        ("batch", features[None], coords[None]),
        ("nan", np.where(features > 1, np.nan, features), coords),
        ("double", features.astype(np.float64), coords.astype(float)),
        ("short", features[:4], coords),
        ("empty", features[:0], coords[:0]),
        ("thin", features[:, :0], coords),
        ("place", features, np.where(coords > 0, np.nan, 0)),
        ("words", features.astype("S"), coords),
        ("flatter", features[0], coords),
    ):
        with h5py.File(tmp_path / f"{name}.h5", "w") as h:
            h["features"], h["coords"] = f, c
    (tmp_path / "text.h5").write_text("no")
    whole = (tmp_path / "flat.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) - 100])
    with h5py.File(tmp_path / "other.h5", "w") as h:
        h["feats"], h["features"] = features, [1.0]
        del h["features"]
    for name in ("flat", "batch", "double"):
        got = load_features(tmp_path, tmp_path, name)
        assert (
            (got[0] == features).all() and got[0].dtype == np.float32 and (got[1] == coords).all()
        )
    for name, words in (
        ("nan", "NaN or infinite feature in tile"),
        ("short", "don't fit"),
        ("empty", "no tiles"),
        ("thin", r"no features: .9, 0."),
        ("place", "infinite coords"),
        ("text", "not a CLAM"),
        ("gone", "no file"),
        ("cut", "cut.h5: not a CLAM/TRIDENT file"),
        ("words", "words.h5: not a CLAM.* in place of numbers"),
        ("flatter", "don't fit"),
        ("other", "no `features` in it"),
    ):
        with pytest.raises(InputError, match=words) as e:
            load_features(tmp_path, tmp_path, name)
        assert "\n" not in str(e.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("/tmp/evil-pickle-ran",)


def test_pt_features(tmp_path):
    """Of torch.save: CLAM's tensors without coordinates, dicts with; a pickle is refused and never run."""
    rng, coords = np.random.default_rng(0), tile_cloud(9)
    features = torch.from_numpy(rng.normal(size=(9, 5)).astype(np.float32))
    place = torch.from_numpy(coords)
    for name, saved in (
        ("tensor", features),
        ("batch", features[None]),
        ("dict", dict(features=features, coords=place)),
        ("none", dict(features=features, coords=None)),
        ("brain", features.bfloat16()),
        ("nan", features / (features > 0)),
        ("short", dict(features=features, coords=place[:3])),
        ("feats", dict(feats=features)),
        ("flat", features[0]),
        ("list", [features]),
        ("module", torch.nn.Linear(2, 2)),
        ("evil", Evil()),
        ("empty", features[:0]),
        ("bool", features > 0),
    ):
        torch.save(saved, tmp_path / f"{name}.pt")
    torch.save(features, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "text.pt").write_text("no")
    load = lambda name: load_features(tmp_path, tmp_path, name)
    for name in ("tensor", "batch", "dict", "none", "old"):
        got = load(name)
        assert np.array_equal(got[0], features.numpy()) and (
            np.array_equal(got[1], coords) if name == "dict" else got[1] is None
        )
    assert np.array_equal(load("brain")[0], features.bfloat16().float().numpy())
    for name, words in (
        ("nan", "NaN or infinite feature"),
        ("short", "don't fit"),
        ("feats", "no `features` in it; it has feats"),
        ("flat", "don't fit"),
        ("list", "not a tensor"),
        ("module", "module.pt: not a tensor, .*without running code"),
        ("evil", "evil.pt: not a tensor"),
        ("empty", "no tiles"),
        ("text", "not a tensor"),
        ("bool", "bool in place of numbers"),
    ):
        with pytest.raises(InputError, match=words) as e:
            load(name)
        assert "\n" not in str(e.value)
    assert not Path("/tmp/evil-pickle-ran").exists()


def test_features_in_clams_and_tridents_folders(tmp_path, capsys):
    """What a .pt lacks comes from the .h5 of the same slide beside it; the size of tiles from the attributes that either program writes."""
    features, coords = (
        np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32),
        tile_cloud(9),
    )

    def write(path, attrs, n=9, **data):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as h:
            for k, v in dict(data, coords=coords[:n]).items():
                h[k] = v
            h["coords"].attrs.update(attrs)

    clam, trident = tmp_path / "clam", tmp_path / "trident"
    (clam / "pt_files").mkdir(parents=True)
    for name in "abc":
        torch.save(torch.from_numpy(features), clam / "pt_files" / f"{name}.pt")
    write(clam / "h5_files" / "a.h5", {}, features=features + 1)
    write(clam / "patches" / "a.h5", dict(patch_size=256, patch_level=1, downsample=(2.0, 2.0)))
    write(clam / "patches" / "b.h5", dict(patch_size=256, patch_level=0))
    write(clam / "patches" / "c.h5", dict(patch_size=256, patch_level=0), 8)  # of another tiling
    for source in (clam, clam / "pt_files"):
        taken = features + (source == clam)  # the .h5 goes first where it is asked
        got = load_features(tmp_path, source, "a")
        assert (
            np.array_equal(got[0], taken)
            and np.array_equal(got[1], coords)
            and tile_edge(tmp_path, source, "a", coords) == 512
        )
        assert (
            np.array_equal(load_features(tmp_path, source, "b")[1], coords)
            and tile_edge(tmp_path, source, "b", coords) == 256
        )
        assert load_features(tmp_path, source, "c")[1] is None
    say_twice(clam, list("abc"))
    assert re.fullmatch(
        "1 slides have .h5 and .pt in .*clam, the .h5 is taken: a\n", capsys.readouterr().out
    )
    for attrs, want in (
        (
            dict(
                patch_size=256,
                patch_size_level0=513,
                level0_magnification=40,
                target_magnification=20,
                overlap=0,
                name="x",
            ),
            513,
        ),
        (dict(patch_size=256, level0_magnification=40, target_magnification=20), 512),
        (dict(patch_size=256, downsample=4.0), 1024),
        (dict(patch_size=256, patch_level=2), None),
        (dict(patch_size="big", patch_size_level0=-1), None),
        ({}, None),
    ):
        write(trident / "features_uni" / "x.h5", attrs, features=features)
        assert edge_said(foreign(trident / "features_uni", "x")[3]) == want
    edge = lambda *asked: tile_edge(tmp_path, trident / "features_uni", "x", coords, *asked)
    assert (
        edge() == 448
        and "taken to be 448 level-0 pixels, the pitch of their grid; --tile-um says otherwise"
        in capsys.readouterr().out
    )
    assert edge(500.0) == 500
    write(trident / "patches" / "x_patches.h5", dict(patch_size_level0=300))
    assert edge() == edge(299.0) == 300 and capsys.readouterr().out == ""
    with pytest.raises(
        InputError, match="x.h5 says 300 level-0 pixels for a tile, which is not 448"
    ):
        edge(448.0)


def test_features_made_elsewhere_are_known_by_what_they_hold(tmp_path):
    """A copy, however late and wherever, is the same; other values, an order or coordinates of their own are not."""
    features, coords = (
        np.random.default_rng(0).normal(size=(900, 5)).astype(np.float32),
        tile_cloud(900),
    )

    def write(folder, f, c):
        folder.mkdir()
        with h5py.File(folder / "a.h5", "w") as h:
            h["features"], h["coords"] = f, c
        return features_made_by(tmp_path, folder, "a")

    first = write(tmp_path / "one", features, coords)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two" / "a.h5", (1, 1))
    assert first == features_made_by(tmp_path, tmp_path / "two", "a")
    for i, (f, c) in enumerate(
        (
            (features * 2, coords),
            (features[::-1], coords),
            (features, coords + 1),
            (features[:-1], coords[:-1]),
        )
    ):
        assert write(tmp_path / f"other{i}", f, c) != first


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.h5", "a.pt", "expression.npz"])
def test_damaged_arrays_are_refused_and_never_a_traceback(tmp_path, name):
    """200 copies, a byte flipped, some cut (600 each were tried by hand): arrays, or None or an InputError."""
    rng, path = (
        np.random.default_rng(0),
        tmp_path / {"a.npz": "tiles/a.npz", "a.npy": "features/e/a.npy"}.get(name, name),
    )
    for folder in (tmp_path / "tiles", tmp_path / "features" / "e"):
        folder.mkdir(parents=True)
    features, coords = (
        rng.normal(size=(5, 6)).astype(np.float16),
        np.arange(10, dtype=np.int32).reshape(5, 2),
    )
    np.savez(tmp_path / "tiles" / "a.npz", **WHOLE_TILES)
    np.save(tmp_path / "features" / "e" / "a.npy", features)
    np.savez(
        tmp_path / "expression.npz",
        expression=np.ones((3, 2)),
        genes=np.array(["A", "B"]),
        slide=np.array(["x", "y", "z"]),
    )
    torch.save(dict(model=dict(a=torch.zeros(3))), tmp_path / "a.pt")
    with h5py.File(tmp_path / "a.h5", "w") as h:
        h["features"], h["coords"] = features, coords
    read = {
        "a.npz": lambda: tiles_of(tmp_path, "a"),
        "a.npy": lambda: load_features(tmp_path, "e", "a"),
        "a.h5": lambda: load_features(tmp_path, tmp_path, "a"),
        "a.pt": lambda: load_checkpoint(path, "cpu"),
        "expression.npz": lambda: read_expression(tmp_path),
    }[name]
    data, refused = path.read_bytes(), 0
    assert read() not in (None, (None, None)) if name == "a.npz" else read() is not None
    for i in range(200):
        damaged = bytearray(data)
        damaged[int(rng.integers(128 if name == "a.npy" else len(data)))] ^= int(
            rng.integers(1, 256)
        )
        path.write_bytes(damaged[: int(rng.integers(len(data)))] if i % 5 == 0 else damaged)
        try:
            refused += read() in (None, (None, None)) if name == "a.npz" else read() is None
        except InputError as e:
            assert str(e).isprintable()
            refused += 1
    assert refused >= 40  # at least those that were cut
