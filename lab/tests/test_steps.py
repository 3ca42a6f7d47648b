"""The steps over a cohort: what is missing is made, what fails costs a slide, nothing is mixed."""

import re
import shutil
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

import lab.commands.tiling as commands_tiling
from lab.cohort.expression import read_expression
from lab.cohort.tiles import find_tiles, make_tiles, table_mpp
from lab.commands.he2rna import main as he2rna_main
from lab.commands.tiling import main as tiling_main
from lab.files import InputError, fingerprint, read_rows
from lab.tests.helpers import (
    H_E,
    fill_disk,
    folder_bytes,
    read_csv,
    status_of,
    swap,
    tiny_encoder,
    write_pyramid,
)

STAGE3 = ("--device", "cpu", "--encoder", "resnet50-stage3")


def supertiles(cohort, *argv):
    return tiling_main(["supertiles", str(cohort), *STAGE3, *argv])


def tiny_features(cohort):
    encoder = str(cohort / "tiny.pt")
    return tiling_main(["features", str(cohort), "--device", "cpu", "--encoder", encoder])


def results(cohort):
    return {ending: folder_bytes(cohort, ending) for ending in (".npz", ".npy")}


def test_steps_make_what_is_missing_and_never_mix_settings(two_slides, capsys):
    assert supertiles(two_slides, "--weights", "random", "--workers", "1") == 0
    first = results(two_slides)
    tiles = np.load(two_slides / "tiles" / "a.npz")
    path = two_slides / "features" / "resnet50-stage3" / "a.npy"
    features = np.load(path)
    assert tiles["coords"].dtype == np.int32
    assert features.dtype == np.float16
    assert features.shape == (len(tiles["coords"]), 1024)
    assert min(Image.open(two_slides / "tiles" / "a.png").size) >= 900  # 1,200 the longer edge
    made = {p: p.stat().st_mtime_ns for p in two_slides.rglob("*.np[yz]")}
    assert supertiles(two_slides) == 0  # no options: as it was made, nothing to do
    assert {p: p.stat().st_mtime_ns for p in made} == made
    path.with_name("b.npy").unlink()
    assert supertiles(two_slides, "--workers", "4") == 0  # workers change nothing
    assert results(two_slides) == first
    capsys.readouterr()
    assert supertiles(two_slides, "--tile-um", "150") == 0
    assert "2 slides are made anew: tile_um 112.0 -> 150.0" in capsys.readouterr().out
    changed = np.load(path)
    assert len(changed) == len(np.load(two_slides / "tiles" / "a.npz")["coords"]) < len(features)
    clusters = np.load(two_slides / "supertiles" / "resnet50-stage3" / "a.npz")["cluster"]
    assert len(clusters) == len(changed)
    assert supertiles(two_slides, "--tile-um", "112", "--seed", "0") == 0
    assert results(two_slides) == first
    assert not list(two_slides.rglob("*.tmp"))


def test_a_slide_replaced_by_another_is_made_anew(two_slides):
    tiles = two_slides / "tiles" / "a.npz"
    assert tiling_main(["tiles", str(two_slides)]) == 0
    before = np.load(tiles)["coords"]
    rgb = np.full((1280, 1600, 3), 243, np.uint8)
    rgb[200:700, 300:1400] = H_E["eosin"]
    write_pyramid(two_slides / "slides" / "a.tif", rgb)
    assert tiling_main(["tiles", str(two_slides)]) == 0
    assert len(np.load(tiles)["coords"]) != len(before)


BROKEN = {
    "text": "not a readable slide",
    "cut": "can't be read|not a readable",
    "nothing": "not a readable slide",
    "white": "tissue",
    "nompp": "no µm per pixel",
    "pixel": "no µm per pixel",
}


def write_broken(slides):
    white = np.full((900, 900, 3), 244, np.uint8)
    whole = (slides / "a.tif").read_bytes()
    (slides / "text.svs").write_text("not a slide")
    (slides / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (slides / "nothing.tif").write_bytes(b"")
    write_pyramid(slides / "white.tif", white)
    write_pyramid(slides / "nompp.tif", white, None)
    Image.fromarray(white[:1, :1]).save(slides / "pixel.png")


def test_a_slide_that_fails_does_not_stop_the_others(two_slides, capsys):
    write_broken(two_slides / "slides")
    features = ["features", str(two_slides), *STAGE3]
    assert tiling_main([*features, "--weights", "random"]) == 1
    said = capsys.readouterr()
    assert "2 of 8 slides ready" in said.out
    for name, why in BROKEN.items():
        assert re.search(f"failed: {name}: .*({why})", said.err)
    listed = read_csv(two_slides / "features" / "failed.csv")
    shown = [line for line in said.err.splitlines() if line.startswith("failed:")]
    assert [f"failed: {row['slide']}: {row['reason']}" for row in listed] == shown
    assert {row["slide"] for row in listed} == set(BROKEN)
    for name in BROKEN:
        next((two_slides / "slides").glob(f"{name}.*")).unlink()
    assert tiling_main(features) == 0
    assert not (two_slides / "features" / "failed.csv").exists()
    assert sorted(p.stem for p in (two_slides / "features").rglob("*.npy")) == ["a", "b"]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_full_disk_stops_a_step_with_one_line_and_damages_nothing(
    two_slides, tmp_path, monkeypatch, capsys
):
    """13 files are written; the disk is full at each of them in turn."""
    tiny_encoder(tmp_path / "tiny.pt")
    shutil.copytree(two_slides / "slides", tmp_path / "one" / "slides")
    argv = ("--device", "cpu", "--encoder", tmp_path / "tiny.pt")
    count = fill_disk(monkeypatch, 0)
    one = status_of(capsys, commands_tiling, "supertiles", tmp_path / "one", *argv)
    assert one[0] == 0
    assert count[0] == 13
    for at in range(1, 14):
        count = fill_disk(monkeypatch, at)
        status, said = status_of(capsys, commands_tiling, "supertiles", two_slides, *argv)
        assert not list(two_slides.rglob("*.tmp"))
        assert not list(two_slides.rglob("lock*"))
        assert (status > 0) == (count[0] >= at)  # what was made before is not written again
        if status:
            full = [line for line in said if "No space left on device" in line]
            assert any(str(two_slides) in line for line in full)
            assert "Traceback" not in "".join(said)
    monkeypatch.undo()
    assert tiling_main(["supertiles", str(two_slides), *map(str, argv)]) == 0
    for part in ("tiles", "features", "supertiles"):
        assert folder_bytes(two_slides / part) == folder_bytes(tmp_path / "one" / part)


def vanishing(function, path):
    """The function, before which a file is taken away; only for slide a."""

    def first(slide, *more):
        if Path(slide).stem == "a":
            path.unlink(missing_ok=True)
        return function(slide, *more)

    return first


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("when", ["looked at", "cut", "encoded", "encoded without tiles"])
def test_what_vanishes_meanwhile_is_that_slides_failure(two_slides, monkeypatch, capsys, when):
    tiny_encoder(two_slides / "tiny.pt")
    slide = two_slides / "slides" / "a.tif"
    if when == "looked at":
        swap(monkeypatch, "lab.files", "fingerprint", vanishing(fingerprint, slide))
    elif when == "cut":
        swap(monkeypatch, "lab.cohort.tiles", "find_tiles", vanishing(find_tiles, slide))
    else:
        original = make_tiles
        gone = slide if when == "encoded" else two_slides / "tiles" / "a.npz"

        def then(*more):
            failed = original(*more)
            gone.unlink()
            return failed

        swap(monkeypatch, "lab.cohort.tiles", "make_tiles", then)
    assert tiny_features(two_slides) == 1
    said = capsys.readouterr().err
    assert "failed: a: " in said
    if when == "encoded without tiles":
        assert "tiles/a.npz was there and is gone" in said
    assert [p.stem for p in (two_slides / "features").rglob("*.npy")] == ["b"]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_damaged_settings_of_features_are_made_again(two_slides):
    tiny_encoder(two_slides / "tiny.pt")
    assert tiny_features(two_slides) == 0
    side = two_slides / "features" / "tiny" / "a.json"
    whole = side.read_text()
    for text in (
        "[1]",
        '"x"',
        '{"tiles": "x"}',
        '{"encoder": "tiny", "weights": "x", "tiles": "x"}',
    ):
        side.write_text(text)
        assert tiny_features(two_slides) == 0
        assert side.read_text() == whole


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_folder_in_the_place_of_features_stops_the_step_with_its_name(two_slides, capsys):
    tiny_encoder(two_slides / "tiny.pt")
    path = two_slides / "features" / "tiny" / "a.npy"
    path.mkdir(parents=True)
    argv = ("--device", "cpu", "--encoder", two_slides / "tiny.pt")
    status, said = status_of(capsys, commands_tiling, "features", two_slides, *argv)
    assert status == 2
    assert f"error: {path}: Is a directory" in said


@pytest.mark.parametrize("name", ["x" * 201, "é" * 101, "y" * 300])
def test_a_name_too_long_fails_alone(two_slides, capsys, name):
    (two_slides / "samples.csv").write_text(
        f"slide,patient,project\n{name},p,X\na,q,X\n", encoding="utf-8"
    )
    tiny_encoder(two_slides / "tiny.pt")
    argv = ("--device", "cpu", "--encoder", two_slides / "tiny.pt")
    status, said = status_of(capsys, commands_tiling, "features", two_slides, *argv)
    assert status == 1 and f"failed: {name}: slide {name[:50]} can't be the name" in "".join(said)
    assert (two_slides / "features" / "tiny" / "a.npy").is_file()


def test_names_that_are_no_files_are_refused_and_others_kept(two_slides):
    table, slides = two_slides / "samples.csv", two_slides / "slides"
    for name in ("a\tb", "a\0", "settings"):
        table.write_text(f'slide,patient,project\n"{name}",p,X\n')
        with pytest.raises(InputError, match=r"slide .* can't be the name of a file here"):
            tiling_main(["tiles", str(two_slides)])
    for name in ("é ü 漢字", "it's (1) #2; 50%", "-rf", "a.b.c", "'" * 99):
        (slides / "a.tif").replace(slides / f"{name}.tif")
        table.write_text(f"slide,patient,project\n{name},p,X\n", encoding="utf-8")
        assert tiling_main(["tiles", str(two_slides)]) == 0
        assert (two_slides / "tiles" / f"{name}.npz").is_file()
        (slides / f"{name}.tif").replace(slides / "a.tif")


@pytest.mark.parametrize("mpp", ["half", "0_5"])
def test_an_mpp_that_is_no_number_is_named(two_slides, mpp):
    table = f"slide,patient,project,mpp\na,p,X,{mpp}\n"
    (two_slides / "samples.csv").write_text(table)
    with pytest.raises(InputError, match=f"mpp '{mpp}' of slide a"):
        tiling_main(["tiles", str(two_slides)])


WORDS = [
    *("", "a", "b", "é", "NA", "1e400", "-1", "0", "3.5", "nan", " a ", "\ufeff", "x" * 300),
    *("../x", "a/b", "/etc/x", "..", ".", "\\x", 'say "x"', "a,b", "a;b", "\0", "\r", "x\ny"),
    *("slide", "settings"),
]
CELLS = st.sampled_from(WORDS) | st.text(max_size=4)


def quoted(cell):
    return '"' + cell.replace('"', '""') + '"'


def half_quoted(cell):
    return '"' + cell


@st.composite
def broken_tables(draw, header):
    """Bytes of tables, whole and broken: separators, quotes, line ends, marks, encodings."""
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 3, 3, 3, 4, 4, 5, 6]), max_size=5))
    rows = [draw(header), *([draw(CELLS) for _ in range(n)] for n in lengths)]
    separator = draw(st.sampled_from(",,,;\t"))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quote = draw(st.sampled_from([str, str, quoted, half_quoted]))
    text = draw(st.sampled_from(["", "\ufeff"]))
    for row in rows:
        text += separator.join(map(quote, row)) + end
    cut = draw(st.sampled_from([None, None, -3]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "cp1252"]))
    return text[:cut].encode(encoding, "replace")


NAMES = st.sampled_from(
    ["slide", "patient", "project", "mpp", "sample", "tumor", "msi", "", "slide "]
)
SAMPLES = (
    st.just(["slide", "patient", "project"])
    | st.just(["slide", "patient", "project", "mpp"])
    | st.lists(NAMES, max_size=6)
)
GENES = st.sampled_from(["slide", "sample", "G1", "G2", "", "G1"])
EXPRESSION = st.just(["slide", "G1", "G2"]) | st.lists(GENES, max_size=5)


@hypothesis.settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(broken_tables(SAMPLES), broken_tables(EXPRESSION))
def test_any_table_is_read_or_refused_in_one_line_and_nothing_is_written_outside_the_cohort(
    samples, expression
):
    """Property, by hypothesis (1,500 examples were tried by hand)."""
    with tempfile.TemporaryDirectory() as outside:
        cohort = Path(outside) / "in" / "cohort"
        (cohort / "slides").mkdir(parents=True)
        (cohort / "slides" / "a.png").write_bytes(b"no slide")
        (cohort / "samples.csv").write_bytes(samples)
        (cohort / "expression.csv").write_bytes(expression)
        usual = ("--features", str(cohort), "--device", "cpu")
        for command in (
            lambda: tiling_main(["tiles", str(cohort), "--workers", "1"]),
            lambda: read_expression(cohort),
            lambda: table_mpp(cohort),
            lambda: read_rows(cohort / "samples.csv"),
            lambda: he2rna_main(["train", str(cohort), *usual]),
            lambda: he2rna_main(["msi", str(cohort), *usual]),
        ):
            try:
                command()
            except InputError as e:
                assert str(e).isprintable()
        for path in Path(outside).rglob("*"):
            assert cohort in path.parents or not path.is_file()
