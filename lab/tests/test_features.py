"""Features made elsewhere. Authorities: files that h5py and torch write as CLAM and TRIDENT do."""

import fcntl
import os
import shutil

import h5py
import numpy as np
import pytest
import torch

from lab.cohort.expression import read_expression
from lab.cohort.features import features_made_by, load_features, magnitudes, place_tiles
from lab.cohort.supertiles import twofold
from lab.cohort.tiles import tiles_of
from lab.exchange.clam import foreign
from lab.exchange.layout import edge_said
from lab.files import InputError
from lab.runs import load_checkpoint
from lab.tests.helpers import WHOLE_TILES, describe, tile_cloud

FEATURES = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
COORDS = tile_cloud(9)


def write_h5(path, attributes=(), **datasets):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as h:
        for name, value in datasets.items():
            h[name] = value
        if "coords" in datasets:
            h["coords"].attrs.update(attributes)
    return path


@pytest.mark.parametrize(
    "features, coords",
    [
        (FEATURES, COORDS),
        (FEATURES[None], COORDS[None]),
        (FEATURES.astype(np.float64), COORDS.astype(float)),
    ],
    ids=["(n, D)", "(1, n, D)", "float64"],
)
def test_h5_features_are_read(tmp_path, features, coords):
    write_h5(tmp_path / "a.h5", features=features, coords=coords)
    got, places = load_features(tmp_path, tmp_path, "a")
    assert got.dtype == np.float32
    assert np.array_equal(got, FEATURES)
    assert np.array_equal(places, COORDS)


BROKEN_H5 = {
    "nan": (np.where(FEATURES > 1, np.nan, FEATURES), COORDS, "NaN or infinite feature in tile"),
    "short": (FEATURES[:4], COORDS, "don't fit"),
    "flat": (FEATURES[0], COORDS, "don't fit"),
    "empty": (FEATURES[:0], COORDS[:0], "no tiles"),
    "thin": (FEATURES[:, :0], COORDS, r"no features: .9, 0."),
    "place": (FEATURES, np.where(COORDS > 0, np.nan, 0), "infinite coords"),
    "words": (FEATURES.astype("S"), COORDS, "words.h5: not features of CLAM.* in place of numbers"),
}


@pytest.mark.parametrize("name", BROKEN_H5)
def test_h5_features_that_cannot_be_say_why(tmp_path, name):
    features, coords, words = BROKEN_H5[name]
    write_h5(tmp_path / f"{name}.h5", features=features, coords=coords)
    with pytest.raises(InputError, match=words):
        load_features(tmp_path, tmp_path, name)


def encoded():
    """Features (40, 16) as of an encoder."""
    return np.random.default_rng(1).normal(size=(40, 16)).astype(np.float32)


def with_rows(x, rows, value):
    x[rows] = value
    return x


WRONG = {
    "cut off": (lambda x: with_rows(x, slice(30, None), 0), "all features of 10 of 40 .* tile 30"),
    "one tile": (lambda x: with_rows(x, 7, 0), "all features of 1 of 40 tiles are 0, the first"),
    "filled": (lambda x: with_rows(x, slice(3, 9), -999), "6 of 40 tiles are -999, .* tile 3"),
    "nothing": (np.zeros_like, "all features of 40 of 40 tiles are 0"),
    "the same": (lambda x: np.repeat(x[:1], 40, 0), "of all its 40 tiles are the same"),
    "large": (lambda x: with_rows(x, 9, x[9] * 1e6), "in 1 of 40 tiles, .* tile 9, .*65504"),
    "negative": (lambda x: with_rows(x, 9, -1e5 - x[9]), "up to 1e.05 in 1 of 40 .* float16"),
    "small": (lambda x: x * np.float32(1e-7), "40 of 40 tiles.* float16's smallest normal number"),
    "one small": (lambda x: with_rows(x, 3, x[3] * 1e-5), "1 of 40 tiles, .* tile 3, are below"),
    "infinite": (lambda x: with_rows(x, 5, np.inf), "NaN or infinite feature in tile 5"),
    "nan": (lambda x: with_rows(x, slice(5, 7), np.nan), "NaN or infinite feature in tile 5"),
}


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("name", WRONG)
def test_features_that_cannot_be_meant_are_refused_with_their_count(tmp_path, name, kind):
    """Never clipped: authority is what NumPy makes of them in float16."""
    change, words = WRONG[name]
    with np.errstate(over="ignore", under="ignore"):
        x = change(encoded()).astype(kind)
        half = x.astype(np.float16)
    if name in ("large", "negative"):
        assert np.isinf(half).any()
        words = "NaN or infinite" if kind == np.float16 else words
    if name == "small":
        assert len(np.unique(half)) < 20
        words = "all features" if kind == np.float16 and not half.any(1).all() else words
    write_h5(tmp_path / "a.h5", features=x, coords=tile_cloud(40))
    with pytest.raises(InputError, match=words):
        load_features(tmp_path, tmp_path, "a")
    assert load_features(tmp_path, tmp_path, "a", check=False)[0].shape == x.shape


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_features_at_the_ends_of_what_can_be_meant_are_read(tmp_path, kind):
    x = encoded().astype(kind)
    x[0, :3] = 65504, -65504, 0
    x[1] = np.maximum(x[1], 0)  # as after a ReLU
    x[:, 5] = 0  # a feature that never fires
    x[2, 1:] = 0
    write_h5(tmp_path / "a.h5", features=x, coords=tile_cloud(40))
    assert np.array_equal(load_features(tmp_path, tmp_path, "a")[0], x)
    most, least = magnitudes(x)
    assert np.array_equal(most, abs(x).max(1)) and np.array_equal(least, abs(x).min(1))


def test_an_h5_holds_its_own_numbers(tmp_path, monkeypatch):
    """No link is followed, whatever lies behind it: another .h5, a secret's bytes, or nothing."""
    write_h5(tmp_path / "blocks.h5", d=FEATURES, features=FEATURES)
    (tmp_path / "secret").write_bytes(FEATURES.tobytes())

    def virtual(h, source):
        layout = h5py.VirtualLayout(FEATURES.shape, "f4")
        layout[:] = h5py.VirtualSource(source, "d", FEATURES.shape)
        h.create_virtual_dataset("features", layout)

    def put(name, link, **more):
        def write(h):
            for key, value in more.items():
                h[key] = value
            h[name] = link

        return write

    def stored(h):
        h.create_dataset("features", FEATURES.shape, "f4", external=[("secret", 0, 2**20)])

    def huge(h):
        h.create_dataset("features", (10**9, 1024), "f4", chunks=(8, 1024))

    outside, inside = h5py.ExternalLink("blocks.h5", "/"), h5py.SoftLink("/g/features")
    made = {
        "link": put("features", h5py.ExternalLink("blocks.h5", "/d")),
        "lost": put("features", h5py.ExternalLink("gone.h5", "/d")),
        "feats": put("feats", h5py.ExternalLink("blocks.h5", "/d")),
        "virtual": lambda h: virtual(h, "gone.h5"),
        "whole": lambda h: virtual(h, "blocks.h5"),
        "own": lambda h: (put("d", FEATURES)(h), virtual(h, ".")),
        "raw": stored,
        "soft": put("features", h5py.SoftLink("/kept"), kept=FEATURES),
        "through": put("features", inside, g=outside),
        "dangling": put("features", h5py.SoftLink("/gone")),
        "coords": put("coords", h5py.ExternalLink("blocks.h5", "/d"), features=FEATURES),
        "huge": huge,
        "group": put("features/uni", FEATURES),
        "other": put("g", outside),
    }
    monkeypatch.chdir(tmp_path)
    for name, write in made.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as h:
            write(h)
    for name in ("link", "through", "raw"):  # what HDF5 makes of them
        with h5py.File(tmp_path / f"{name}.h5") as h:
            assert np.array_equal(h["features"][:], FEATURES)
    opened, whole = [], h5py.File
    monkeypatch.setattr(h5py, "File", lambda path, *_, **more: opened.append(path) or whole(path))
    said = {
        "group": "no `features` in it; it has features, features/uni",
        "other": "no `features` in it; it has g",
        "huge": r"its `features` \(1000000000, 1024\) are far larger than the file",
        "feats": "its `feats` lie elsewhere",
        "coords": "its `coords` lie elsewhere",
    }
    for name in made:
        words = said.get(name, "its `features` lie elsewhere, behind a link or in another file")
        with pytest.raises(InputError, match=f"{name}.h5: {words}"):
            load_features(tmp_path, tmp_path, name)
    assert {path.stem for path in opened} == set(made)


def test_features_are_read_without_a_lock(tmp_path):
    """Whether a file system knows no locks, or another program holds one."""
    path = write_h5(tmp_path / "a.h5", features=FEATURES, coords=COORDS)
    with open(path) as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(path)
        assert np.array_equal(load_features(tmp_path, tmp_path, "a")[0], FEATURES)


def test_stamps_files_are_read_by_their_names(tmp_path):
    write_h5(tmp_path / "a.h5", feats=FEATURES, coords=COORDS * 0.5)
    features, coords = load_features(tmp_path, tmp_path, "a")
    assert np.array_equal(features, FEATURES) and np.array_equal(coords, COORDS * 0.5)


def test_files_that_are_no_h5_features_say_why(tmp_path):
    whole = write_h5(tmp_path / "whole.h5", features=FEATURES, coords=COORDS).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[:-100])
    (tmp_path / "text.h5").write_text("no")
    write_h5(tmp_path / "other.h5", embeddings=FEATURES, coords=COORDS)
    for name, words in (
        ("cut", "cut.h5: not features of CLAM or TRIDENT"),
        ("text", "not features of CLAM"),
        ("gone", "no file"),
        ("other", "no `features` in it; it has coords, embeddings: give one"),
    ):
        with pytest.raises(InputError, match=words):
            load_features(tmp_path, tmp_path, name)


def test_pt_features_are_read(tmp_path):
    """CLAM's tensors have no coordinates, dicts may have."""
    tensor, places = torch.from_numpy(FEATURES), torch.from_numpy(COORDS)
    for name, saved in (
        ("tensor", tensor),
        ("batch", tensor[None]),
        ("dict", {"features": tensor, "coords": places}),
        ("none", {"features": tensor, "coords": None}),
    ):
        torch.save(saved, tmp_path / f"{name}.pt")
    torch.save(tensor, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(tensor.bfloat16(), tmp_path / "brain.pt")
    for name in ("tensor", "batch", "dict", "none", "old"):
        features, coords = load_features(tmp_path, tmp_path, name)
        assert np.array_equal(features, FEATURES)
        assert np.array_equal(coords, COORDS) if name == "dict" else coords is None
    features, _ = load_features(tmp_path, tmp_path, "brain")
    assert np.array_equal(features, tensor.bfloat16().float().numpy())


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pt_files_without_features_say_why_and_no_pickle_is_run(tmp_path):
    tensor = torch.from_numpy(FEATURES)
    ran = tmp_path / "ran"
    for name, saved, words in (
        ("nan", tensor / (tensor > 0), "NaN or infinite feature"),
        ("short", {"features": tensor, "coords": torch.from_numpy(COORDS)[:3]}, "don't fit"),
        ("other", {"embeddings": tensor}, "no `features` in it; it has embeddings"),
        ("flat", tensor[0], "don't fit"),
        ("list", [tensor], "not features of CLAM"),
        ("module", torch.nn.Linear(2, 2), "module.pt: not features .*without running code"),
        ("evil", Evil(str(ran)), "evil.pt: not features"),
        ("empty", tensor[:0], "no tiles"),
        ("bool", tensor > 0, "bool in place of numbers"),
    ):
        torch.save(saved, tmp_path / f"{name}.pt")
        with pytest.raises(InputError, match=words) as e:
            load_features(tmp_path, tmp_path, name)
        assert "\n" not in str(e.value)
    assert not ran.exists()


def test_what_a_pt_lacks_comes_from_the_h5_beside_it(tmp_path):
    """CLAM's folders: features in pt_files/ and h5_files/, coordinates in patches/ too."""
    clam = tmp_path / "clam"
    (clam / "pt_files").mkdir(parents=True)
    for name in "abc":
        torch.save(torch.from_numpy(FEATURES), clam / "pt_files" / f"{name}.pt")
    level1 = {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0)}
    level0 = {"patch_size": 256, "patch_level": 0}
    write_h5(clam / "h5_files" / "a.h5", features=FEATURES + 1, coords=COORDS)
    write_h5(clam / "patches" / "a.h5", level1, coords=COORDS)
    write_h5(clam / "patches" / "b.h5", level0, coords=COORDS)
    write_h5(clam / "patches" / "c.h5", level0, coords=COORDS[:8])  # of another tiling
    for source, first in ((clam, FEATURES + 1), (clam / "pt_files", FEATURES)):
        features, coords = load_features(tmp_path, source, "a")
        assert np.array_equal(features, first)  # the .h5 goes first where it is asked
        assert np.array_equal(coords, COORDS)
        assert place_tiles(tmp_path, source, "a", coords)[1] == 512
        assert np.array_equal(load_features(tmp_path, source, "b")[1], COORDS)
        assert place_tiles(tmp_path, source, "b", COORDS)[1] == 256
        assert load_features(tmp_path, source, "c")[1] is None


@pytest.mark.parametrize(
    "attributes, edge",
    [
        ({"patch_size": 256, "patch_size_level0": 513, "target_magnification": 20}, 513),
        ({"patch_size": 256, "level0_magnification": 40, "target_magnification": 20}, 512),
        ({"patch_size": 256, "downsample": 4.0}, 1024),
        ({"patch_size": 256, "patch_level": 0}, 256),
        ({"patch_size": 256, "patch_level": 2}, None),
        ({"patch_size": "big", "patch_size_level0": -1}, None),
        ({}, None),
    ],
)
def test_edge_of_a_tile_by_the_attributes_of_trident_and_clam(tmp_path, attributes, edge):
    write_h5(tmp_path / "uni" / "x.h5", attributes, features=FEATURES, coords=COORDS)
    *_, said = foreign(tmp_path / "uni", "x")
    assert edge_said(said) == edge


def test_edge_of_a_tile_where_the_file_does_not_say(tmp_path, capsys):
    source = tmp_path / "trident" / "features_uni"
    write_h5(source / "x.h5", features=FEATURES, coords=COORDS)
    assert place_tiles(tmp_path, source, "x", COORDS)[1] == 448
    assert "taken to be 448 level-0 pixels, the pitch of their grid" in capsys.readouterr().out
    assert place_tiles(tmp_path, source, "x", COORDS, asked=500.0)[1] == 500
    assert "they overlap" in capsys.readouterr().out
    patches = tmp_path / "trident" / "patches" / "x_patches.h5"
    write_h5(patches, {"patch_size_level0": 450}, coords=COORDS)
    assert place_tiles(tmp_path, source, "x", COORDS, asked=449.0)[1] == 450
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match=r"x.h5: it says 450 level-0 pixels .* which is not 500"):
        place_tiles(tmp_path, source, "x", COORDS, asked=500.0)[1]


def test_features_made_elsewhere_are_known_by_what_they_hold(tmp_path):
    """A copy, however late and wherever, is the same; other values, order or places are not."""
    rng = np.random.default_rng(0)
    features, coords = rng.normal(size=(900, 5)).astype(np.float32), tile_cloud(900)
    write_h5(tmp_path / "one" / "a.h5", features=features, coords=coords)
    first = features_made_by(tmp_path, tmp_path / "one", "a")
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
        write_h5(tmp_path / f"other{i}" / "a.h5", features=f, coords=c)
        assert features_made_by(tmp_path, tmp_path / f"other{i}", "a") != first


def damaged(data, rng, header):
    """A copy with a flipped byte; one in five is cut."""
    copy = bytearray(data)
    copy[int(rng.integers(header or len(data)))] ^= int(rng.integers(1, 256))
    return bytes(copy[: int(rng.integers(len(data)))]) if rng.random() < 0.2 else bytes(copy)


@pytest.mark.parametrize(
    "name", ["tiles/a.npz", "features/e/a.npy", "a.h5", "a.pt", "expression.npz"]
)
def test_damaged_arrays_are_refused_and_never_a_traceback(tmp_path, name):
    """200 copies (600 each were tried by hand): arrays, or None, or an InputError."""
    rng = np.random.default_rng(0)
    features, coords = FEATURES[:5].astype(np.float16), WHOLE_TILES["coords"]
    describe(tmp_path, features)
    slides = np.array(["x", "y", "z"])
    table = {"expression": np.ones((3, 2)), "genes": np.array(["A", "B"]), "slide": slides}
    np.savez(tmp_path / "expression.npz", **table)
    torch.save({"model": {"a": torch.zeros(3)}}, tmp_path / "a.pt")
    write_h5(tmp_path / "a.h5", features=features, coords=coords)
    path = tmp_path / name
    read = {
        "tiles/a.npz": lambda: tiles_of(tmp_path, "a")[0],
        "features/e/a.npy": lambda: load_features(tmp_path, "e", "a"),
        "a.h5": lambda: load_features(tmp_path, tmp_path, "a"),
        "a.pt": lambda: load_checkpoint(path, "cpu"),
        "expression.npz": lambda: read_expression(tmp_path),
    }[name]
    assert read() is not None
    data, refused = path.read_bytes(), 0
    for _ in range(200):
        path.write_bytes(damaged(data, rng, 128 if name.endswith(".npy") else None))
        try:
            refused += read() is None
        except InputError as e:
            assert str(e).isprintable()
            refused += 1
    assert refused >= 20  # at least most of those that were cut


def test_ours_must_be_float16(tmp_path):
    describe(tmp_path, FEATURES[:5])
    with pytest.raises(InputError, match=r"not a whole array .float32, not float16"):
        load_features(tmp_path, "e", "a")


def test_of_two_files_of_a_slide_the_h5_is_taken_and_that_is_said(tmp_path):
    """`twofold` names the slides with both; CLAM keeps the two kinds in folders of their own."""
    for name in ("a.h5", "a.pt", "b.pt", "h5_files/c.h5", "pt_files/c.pt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert twofold(tmp_path, ["a", "b", "c"]) == ["a", "c"]
    assert twofold("resnet50", ["a"]) == []
