"""Old results never pass for new. Authority: what was changed by hand here, one thing at a time."""

import argparse
import json
import os
import shutil

import h5py
import numpy as np
import pytest

from lab.application import check_features, ready_slides, unlike
from lab.cohort.encoding import made_by, missing_features
from lab.cohort.features import learned_as, load_features
from lab.cohort.made import all_bytes, is_changed
from lab.cohort.samples import read_samples
from lab.cohort.supertiles import make_supertiles
from lab.cohort.tiles import missing_tiles
from lab.commands.tiling import main
from lab.files import InputError, fingerprint, load_json, save_json
from lab.histcode.pairs import pairs_of
from lab.locks import release
from lab.tests.helpers import WHOLE_TILES, describe, options, swap, tile_cloud, tiny_encoder
from lab.tests.helpers_he2rna import train, write_cohort
from lab.tests.helpers_histcode import write_pairs

FEATURES = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
CUT = {"tile_um": 112.0, "min_tissue": 0.5, "max_tiles": 9, "mpp": None, "seed": 0, "file": "1 b"}
TILES = {**WHOLE_TILES, "settings": np.array(json.dumps(CUT))}
SETTINGS = {"weights": "random", "precision": "float32", "colour": "none", "seed": 0}


def later(path, seconds=10):
    """A file's time, moved."""
    there = path.stat()
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns + int(seconds * 1e9)))


def recut(cohort, **change):
    np.savez(cohort / "tiles" / "a.npz", **{**TILES, **change})


# ----- Slides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 299_999, None])
def test_a_fingerprint_knows_size_and_both_ends(tmp_path, at):
    path = tmp_path / "a.svs"
    data = bytearray(300_000)
    path.write_bytes(data)
    before = fingerprint(path)
    if at is None:
        data += b"\0"
    else:
        data[at] = 1
    path.write_bytes(data)
    assert fingerprint(path) != before


@pytest.mark.parametrize("name", ["a.svs", "a.mrxs"])
def test_a_slide_changed_in_its_middle_is_seen_by_its_time_and_all_its_bytes(tmp_path, name):
    """In one of its files; a copy is read whole once, and nothing else is read."""
    path, part = tmp_path / name, tmp_path / name
    path.write_bytes(bytes(300_000))
    if name == "a.mrxs":
        part = tmp_path / "a" / "Data0000.dat"
        part.parent.mkdir()
        part.write_bytes(bytes(300_000))
    side, before = tmp_path / "a.json", fingerprint(path)
    save_json(side, {"slide": all_bytes(path)})
    assert not is_changed(path, side, [side])
    later(part)  # as of a copy
    assert not is_changed(path, side, [side])
    assert side.stat().st_mtime_ns == part.stat().st_mtime_ns  # so that it is not read again
    data = bytearray(part.read_bytes())
    data[150_000] = 1
    part.write_bytes(data)
    later(part, 20)
    assert fingerprint(path) == before and is_changed(path, side, [side])
    assert is_changed(path, side, [])  # tiles without features are cut again
    save_json(side, {"tiles": {}})  # of an earlier version, which did not look
    later(part, 40)
    assert not is_changed(path, side, [side])


TISSUE = {"tissue": "saturation", "tissue_threshold": 20.0, "min_area": 1.0}  # not the usual


@pytest.mark.parametrize("key", [None, "file", *CUT, *TISSUE])
def test_tiles_are_cut_anew_of_each_other_setting_alone(tmp_path, key):
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"slide")
    given = {**CUT, "mpp": 0.5}
    settings = np.array(json.dumps({**given, "file": fingerprint(slide)}))
    describe(tmp_path, FEATURES, tiles={**TILES, "found": 9, "settings": settings})
    shared = {name: given[name] for name in CUT if name != "file"}
    if key == "file":
        slide.write_bytes(b"another")
    elif key:
        shared[key] = TISSUE.get(key, 3)
    jobs, anew, failed = missing_tiles(tmp_path, tmp_path, ["a"], shared, {"a": slide})
    assert (list(jobs), len(anew), failed) == (["a"] * bool(key), bool(key), {})


# ----- Tiles and features -----------------------------------------------------------------------


@pytest.fixture
def described(tmp_path):
    """A function that says which of the slide's features would be made: of settings, a slide."""
    o = options("--encoder", "resnet50")
    described = describe(tmp_path, FEATURES, encoder="resnet50", tiles=TILES, slide="0" * 16)

    def jobs(found=(), **change):
        wanted = made_by(o, {**SETTINGS, **change})
        return missing_features(tmp_path, ["a"], dict(found or {"a": tmp_path / "no"}), wanted, {})

    assert jobs() == ({}, [])
    return described, jobs


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"weights": "imagenet"}, {"precision": "bfloat16"}, {"colour": "macenko"}],
)
def test_features_are_made_anew_of_each_other_setting_alone(described, change):
    jobs, anew = described[1](**change)
    assert list(jobs) == ["a"] and len(anew) == 1


@pytest.mark.parametrize("key", CUT)
def test_features_are_made_anew_of_each_other_setting_of_the_tiles_alone(described, tmp_path, key):
    settings = {**CUT, key: "2 b" if key == "file" else 3.0}
    recut(tmp_path, settings=np.array(json.dumps(settings)))
    assert list(described[1]()[0]) == ["a"]


@pytest.mark.parametrize(
    "change", [{"coords": WHOLE_TILES["coords"][::-1]}, {"tile": 3.0}, {"mpp": 0.25}]
)
def test_features_are_of_the_tiles_that_are_there(described, tmp_path, change):
    """Their places, edge and scale alone, under the same settings: made anew, or refused."""
    recut(tmp_path, **change)
    assert list(described[1]()[0]) == ["a"]
    with pytest.raises(InputError, match=r"a.npy is of other tiles than .*a.npz has now \(others"):
        load_features(tmp_path, "resnet50", "a")


def test_features_of_an_earlier_version_are_read_where_the_settings_of_their_tiles_agree(described):
    path, jobs = described
    side = load_json(path.with_suffix(".json"))
    for key in ("cut", "holds", "slide"):
        del side[key]
    save_json(path.with_suffix(".json"), side)
    cohort = path.parents[2]
    assert jobs() == ({}, []) and np.array_equal(
        load_features(cohort, "resnet50", "a")[0], FEATURES
    )
    recut(cohort, settings=np.array(json.dumps({**CUT, "seed": 3})))
    with pytest.raises(InputError, match=r"of other tiles .* \(seed 0 -> 3\)"):
        load_features(cohort, "resnet50", "a")


OTHER = {
    "doubled": (FEATURES * 2, "it holds"),
    "in another order": (FEATURES[::-1], "it holds"),
    "one number": (np.where(np.arange(4) < 3, FEATURES, FEATURES + 1).astype("f2"), "it holds"),
    "half the width": (FEATURES[:, :2], r"it holds float16 \(5, 2\), .* of float16 \(5, 4\)"),
    "zeroed": (FEATURES * 0, "it holds"),
    "other bits": (FEATURES.view(np.int16), "int16, not float16"),
    "shorter": (FEATURES[:4], r"\(4, 4\) and coords \(5, 2\) don't fit"),
}


@pytest.mark.parametrize("name", OTHER)
def test_features_are_the_numbers_of_which_their_json_speaks(described, name):
    path, _ = described
    other, words = OTHER[name]
    np.save(path, np.asfortranarray(FEATURES))  # how they lie in the file is all one
    assert np.array_equal(load_features(path.parents[2], "resnet50", "a")[0], FEATURES)
    np.save(path, np.ascontiguousarray(other))
    with pytest.raises(InputError, match=f"a.npy: .*{words}.*delete it to have it made again"):
        load_features(path.parents[2], "resnet50", "a")


def test_features_without_their_json_are_of_nobody_knows_what(described):
    path, jobs = described
    path.with_suffix(".json").unlink()
    assert list(jobs()[0]) == ["a"]
    with pytest.raises(InputError, match=r"a.npy: no whole a.json beside it says what made it"):
        load_features(path.parents[2], "resnet50", "a")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_new_features_never_lie_beside_an_old_json(two_slides, monkeypatch):
    """Killed between the two, the slide is made again."""
    tiny_encoder(two_slides / "tiny.pt")
    encoder = ["--device", "cpu", "--encoder", str(two_slides / "tiny.pt")]
    assert main(["features", str(two_slides), *encoder]) == 0
    side = two_slides / "features" / "tiny" / "a.json"
    before = side.with_suffix(".npy").stat().st_ino

    def killed(path, *more, save=save_json):
        if path.name == side.name:
            raise KeyboardInterrupt
        save(path, *more)

    swap(monkeypatch, "lab.files", "save_json", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["features", str(two_slides), *encoder, "--colour", "macenko"])
    monkeypatch.undo()
    release()
    assert side.with_suffix(".npy").stat().st_ino != before and not side.exists()
    assert main(["features", str(two_slides), *encoder]) == 0
    assert load_json(side)["colour"] == "macenko" and len(load_features(two_slides, "tiny", "a")[0])


# ----- Features made elsewhere, super-tiles -----------------------------------------------------


def elsewhere(folder, name="a", seed=0, rows=640):
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float16)
    with h5py.File(folder / f"{name}.h5", "w") as h:
        h["features"], h["coords"] = x, tile_cloud(rows)
    return folder / f"{name}.h5"


def test_super_tiles_know_all_of_their_features(tmp_path):
    """Rows that no sample sees, files that change places, what they hold themselves; no copy."""
    source, o = tmp_path / "uni", options("--features", str(tmp_path / "uni"))
    o.share = 0, 1
    files = [elsewhere(source, name, seed) for seed, name in enumerate("ab")]
    made = [tmp_path / "supertiles" / "uni" / f"{name}.npz" for name in "ab"]

    def anew():
        """Which super-tiles are made now, a call later."""
        before = [path.stat().st_ino if path.is_file() else 0 for path in made]
        assert make_supertiles(tmp_path, ["a", "b"], o) == {}
        return [path.stat().st_ino != old for path, old in zip(made, before, strict=True)]

    assert anew() == [True, True] and anew() == [False, False]
    with h5py.File(files[0], "r+") as h:  # three quarters of the rows between those of the sample
        h["features"][np.flatnonzero(np.arange(640) % 10 > 2)] += 1
    later(files[0])
    assert anew() == [True, False] and anew() == [False, False]
    for path, way in zip(files, (20, -20), strict=True):
        shutil.copy(path, tmp_path / "copy.h5")
        shutil.move(tmp_path / "copy.h5", path)
        later(path, way)
    assert anew() == [False, False]
    files[0].rename(tmp_path / "x.h5")
    files[1].rename(files[0])
    (tmp_path / "x.h5").rename(files[1])
    for path in files:
        later(path, -99)
    assert anew() == [True, True]
    arrays = dict(np.load(made[1]))
    np.savez(made[1], **{**arrays, "means": arrays["means"] * 2})
    assert anew() == [False, True]
    for change in ({"tile_seed": 5}, {"k": 7}):
        if "k" in change:
            save_json(made[0].with_name("settings.json"), {"seed": 5, **change})
        o = argparse.Namespace(**{**vars(o), **change})
        assert anew() == [True, True]


# ----- Runs -------------------------------------------------------------------------------------


def run_on(cohort, source, made, **config):
    features = {"source": "resnet50", "weights": "random, seed 0", "tile_um": 112.0}
    config = {"n_features": 4, "features": {**features, "colour": "none"}, **config}
    run = {"folder": cohort / "runs" / "r", "config": config, "learned_as": {}}
    return {**run, "learned_as": {"a": learned_as(cohort, source, "a", made)}}


def test_a_run_knows_the_features_that_it_learned_from(described):
    path, _ = described
    cohort = path.parents[2]
    run = run_on(cohort, "resnet50", None)
    check_features(run, cohort, "resnet50", "a")
    side = load_json(path.with_suffix(".json"))
    for key in ("precision", "slide"):  # as another machine makes them
        save_json(path.with_suffix(".json"), {**side, key: "other"})
        check_features(run, cohort, "resnet50", "a")
    for key in ("encoder", "weights", "colour", "tile_px"):
        save_json(path.with_suffix(".json"), {**side, key: "other"})
        assert list(unlike(run, "resnet50", cohort, ["a"], None)) == ["a"]
    describe(cohort, FEATURES, encoder="resnet50", tiles={**TILES, "tile": 3.0})
    with pytest.raises(InputError, match=r"resnet50 are not those that .*r learned from.*--into"):
        check_features(run, cohort, "resnet50", "a")
    check_features(run, cohort, "resnet50", "a", own=False)  # a stranger of that name
    check_features({**run, "learned_as": {}}, cohort, "resnet50", "a")  # of an earlier version
    describe(cohort, FEATURES[:, :2], encoder="resnet50", tiles=TILES)
    with pytest.raises(InputError, match="2 features a tile, the run learned from 4"):
        check_features(run, cohort, "resnet50", "a", own=False)


def test_a_run_knows_features_made_elsewhere_by_all_they_hold(tmp_path):
    path = elsewhere(tmp_path / "uni")
    run = run_on(tmp_path, tmp_path / "uni", None)
    check_features(run, tmp_path, tmp_path / "uni", "a")
    with h5py.File(path, "r+") as h:
        h["features"][3] += 1
    later(path)
    with pytest.raises(
        InputError, match=r"uni are not those that .* learned from.*bring those back"
    ):
        check_features(run, tmp_path, tmp_path / "uni", "a")


@pytest.mark.parametrize("key", ["source", "weights", "tile_um", "colour"])
def test_no_model_speaks_of_features_of_another_kind(described, key):
    """predict and heatmap ask `ready_slides` first; each of four settings alone."""
    path, _ = described
    cohort = path.parents[2]
    (cohort / "slides").mkdir()
    run = run_on(cohort, "resnet50", None)
    assert ready_slides(run, cohort, cohort, ["a"]) == {"a"}
    side = load_json(path.with_suffix(".json"))
    if key == "tile_um":
        side["tiles"][key] = 150.0
    else:
        side["encoder" if key == "source" else key] = "other"
    save_json(path.with_suffix(".json"), side)
    with pytest.raises(InputError, match=f"features of slide a .*{key} .*, the run has"):
        ready_slides(run, cohort, cohort, ["a"])


# ----- Orders that mean nothing -----------------------------------------------------------------


def turned(*tables):
    """Tables with their rows in the other order."""
    for path in tables:
        header, *rows = path.read_text().splitlines()
        path.write_text("\n".join([header, *rows[::-1]]) + "\n")


def test_the_order_of_rows_decides_nothing(tmp_path):
    """A finished run is the same run: by its bags, folds and expression, to the last bit."""
    write_cohort(tmp_path, np.random.default_rng(0), patients=8, per_patient=2)
    assert train(tmp_path, "--epochs", "1") == 0
    slides = [row["slide"] for row in read_samples(tmp_path)]
    turned(tmp_path / "samples.csv", tmp_path / "expression.csv")
    assert [row["slide"] for row in read_samples(tmp_path)] == slides
    assert train(tmp_path, "--epochs", "1") == 0


def test_pairs_are_the_same_in_any_order_of_rows(tmp_path):
    cohort = write_pairs(tmp_path / "c")
    table = cohort / "expression.csv"
    header, *rows = table.read_text().splitlines()
    more = []
    for vial, scale in ("B", 7e-17), ("C", 6e-17):  # less than a last digit each, together one
        for name, *values in (row.split(",") for row in rows if "-01A" in row):
            numbers = [f"{scale * float(value):.9g}" for value in values]
            more.append(",".join([name.replace("-01A", f"-01{vial}"), *numbers]))
    table.write_text("\n".join([header, *rows, *more]))
    one = pairs_of(cohort)
    turned(cohort / "samples.csv", table)
    two = pairs_of(cohort)
    assert one.slides == two.slides and np.array_equal(one.y, two.y, equal_nan=True)
