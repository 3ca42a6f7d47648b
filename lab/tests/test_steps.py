"""lab.tests.test_steps"""

import json
import re
import resource
import shutil
import struct
import tempfile
import time
import zlib
from pathlib import Path

import h5py
import hypothesis
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import strategies as st
from PIL import Image

import lab.commands.tiling as commands_tiling
import tiling
from lab.cohort.expression import read_expression
from lab.cohort.slides import open_slide
from lab.cohort.tiles import table_mpp, tiles_of
from lab.commands.he2rna import main as he2rna_main
from lab.commands.tiling import main as tiling_main
from lab.exchange.qupath import qupath_frame
from lab.files import InputError, read_rows
from lab.tests.helpers import (
    H_E,
    STAIN_PAIRS,
    WHOLE_TILES,
    degrees_between,
    feature,
    fill_disk,
    folder_bytes,
    painted,
    pixels_of,
    random_resnet,
    read_csv,
    real,
    relative,
    stained,
    status_of,
    swap,
    tiny_encoder,
    train,
    write_cohort,
    write_pyramid,
)


def test_steps_make_what_is_missing_and_never_mix_settings(two_slides, capsys):
    run = lambda *a: tiling_main(
        ["supertiles", str(two_slides), "--device", "cpu", "--encoder", "resnet50-stage3", *a]
    )
    assert run("--weights", "random", "--workers", "1") == 0
    first = {e: folder_bytes(two_slides, e) for e in (".npz", ".npy")}
    tiles = np.load(two_slides / "tiles" / "a.npz")
    features = np.load(two_slides / "features" / "resnet50-stage3" / "a.npy")
    assert (
        features.dtype == np.float16
        and features.shape == (len(tiles["coords"]), 1024)
        and tiles["coords"].dtype == np.int32
    )
    assert Image.open(two_slides / "tiles" / "a.png").size[0] >= 100
    made = {p: p.stat().st_mtime_ns for p in two_slides.rglob("*.np[yz]")}
    assert run() == 0  # no options: as it was made, nothing to do
    assert {p: p.stat().st_mtime_ns for p in made} == made
    (two_slides / "features" / "resnet50-stage3" / "b.npy").unlink()
    assert run("--workers", "4") == 0  # what is missing; workers change nothing
    assert {e: folder_bytes(two_slides, e) for e in (".npz", ".npy")} == first
    assert run("--tile-um", "150") == 0
    assert "2 slides are made anew: tile_um 112.0 -> 150.0" in capsys.readouterr().out
    changed = np.load(two_slides / "features" / "resnet50-stage3" / "a.npy")
    assert len(changed) == len(np.load(two_slides / "tiles" / "a.npz")["coords"]) != len(features)
    assert len(np.load(two_slides / "supertiles" / "resnet50-stage3" / "a.npz")["cluster"]) == len(
        changed
    )
    assert (
        run("--tile-um", "112", "--seed", "0") == 0
        and {e: folder_bytes(two_slides, e) for e in (".npz", ".npy")} == first
    )
    assert not list(two_slides.rglob("*.tmp"))


def test_a_slide_replaced_by_another_is_made_anew(two_slides):
    run = lambda: tiling_main(["tiles", str(two_slides)])
    assert run() == 0
    before = np.load(two_slides / "tiles" / "a.npz")["coords"]
    shutil.copyfile(two_slides / "slides" / "b.tif", two_slides / "slides" / "a.tif")
    rgb = np.full((1280, 1600, 3), 243, np.uint8)
    rgb[200:700, 300:1400] = H_E["eosin"]
    write_pyramid(two_slides / "slides" / "a.tif", rgb)
    assert run() == 0 and len(np.load(two_slides / "tiles" / "a.npz")["coords"]) != len(before)


def test_a_slide_that_fails_does_not_stop_the_others(two_slides, capsys):
    (two_slides / "slides" / "text.svs").write_text("not a slide")
    whole = (two_slides / "slides" / "a.tif").read_bytes()
    (two_slides / "slides" / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (two_slides / "slides" / "nothing.tif").write_bytes(b"")
    write_pyramid(two_slides / "slides" / "white.tif", np.full((900, 900, 3), 244, np.uint8))
    write_pyramid(two_slides / "slides" / "nompp.tif", np.full((900, 900, 3), 244, np.uint8), None)
    Image.fromarray(np.full((1, 1, 3), 200, np.uint8)).save(two_slides / "slides" / "pixel.png")
    status = tiling_main(
        [
            "features",
            str(two_slides),
            "--weights",
            "random",
            "--device",
            "cpu",
            "--encoder",
            "resnet50-stage3",
        ]
    )
    said = capsys.readouterr()
    assert status == 1 and "2 of 8 slides ready" in said.out
    for name, why in (
        ("text", "not a readable slide"),
        ("cut", "can't be read|not a readable"),
        ("nothing", "not a readable slide"),
        ("white", "tissue"),
        ("nompp", "no µm per pixel"),
        ("pixel", "no µm per pixel"),
    ):
        assert re.search(f"failed: {name}: .*{why}", said.err)
    listed = read_csv(two_slides / "features" / "failed.csv")
    shown = [line for line in said.err.splitlines() if line.startswith("failed:")]
    assert [f"failed: {r['slide']}: {r['reason']}" for r in listed] == shown and len(listed) == 6
    for r in listed:
        next((two_slides / "slides").glob(f"{r['slide']}.*")).unlink()
    assert (
        tiling_main(
            ["features", str(two_slides), "--encoder", "resnet50-stage3", "--device", "cpu"]
        )
        == 0
    )
    assert not (two_slides / "features" / "failed.csv").exists()
    assert sorted(p.stem for p in (two_slides / "features").rglob("*.npy")) == ["a", "b"]


def png_that_claims(path, width, height):
    """A small PNG whose header claims another size, its checksum made right."""
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(path)
    data = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


def test_slides_that_cannot_be_meant_have_a_reason_each(two_slides, capsys):
    """Sizes and scales that are wrong, claimed or too small; the good slide among them is done, in seconds and little memory."""
    slides, why = two_slides / "slides", {}
    (slides / "b.tif").unlink()
    for name, (h, w) in dict(pixel=(1, 1), line=(1, 100_000), column=(100_000, 1)).items():
        Image.fromarray(np.full((h, w, 3), 150, np.uint8)).save(slides / f"{name}.png")
        why[name] = "smaller than a tile of 112 µm"
    png_that_claims(slides / "bomb.png", 60_000, 60_000)
    png_that_claims(slides / "hollow.png", 3_000, 3_000)
    why.update(
        bomb="not a readable slide .*exceeds limit",
        hollow="truncated|broken|can't be read",
        wide="more than a glass slide has",
        high="more than a glass slide has",
    )
    for name, tag in (("wide", "ImageWidth"), ("high", "ImageLength")):
        write_pyramid(slides / f"{name}.tif", np.full((600, 600, 3), 150, np.uint8), levels=1)
        with tifffile.TiffFile(slides / f"{name}.tif", mode="r+") as t:
            t.pages[0].tags[tag].overwrite(2**29)
            for tag in (
                "TileOffsets",
                "TileByteCounts",
            ):  # 2.8 million tiles, as many as the claimed size has
                t.pages[0].tags[tag].overwrite([t.pages[0].tags[tag].value[0]] * (3 * 2**21))
    rows = []
    for i, mpp in enumerate(("0", "-1", "nan", "1e9", "1e400")):
        Image.fromarray(np.full((900, 900, 3), 150, np.uint8)).save(slides / f"table{i}.png")
        with tifffile.TiffWriter(slides / f"own{i}.svs") as t:
            t.write(
                np.full((512, 512, 3), 150, np.uint8),
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                metadata=None,
                description=f"Aperio Image Library v1\r\n512x512 [0,0 512x512] (256x256)|MPP = {mpp}|AppMag = 20",
            )
        rows.append(f"table{i},p,X,{mpp}")
        why[f"table{i}"], why[f"own{i}"] = "is outside 0.05-20", "its file says|no µm per pixel"
    rows += [
        f"{name},p,X,{'' if name[:3] == 'own' else 0.5}" for name in why if name[:5] != "table"
    ]
    (two_slides / "samples.csv").write_text(
        "\n".join(["slide,patient,project,mpp", "a,p,X,", *rows])
    )
    start, before = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert tiling_main(["tiles", str(two_slides), "--workers", "2"]) == 1
    assert (
        time.time() - start < 30
        and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19
    )  # KiB
    said = capsys.readouterr().err
    for name, words in why.items():
        assert re.search(f"failed: {name}: .*({words})", said), name
    assert sorted(
        p.stem
        for p in (two_slides / "tiles").glob("*.npz")
        if p.stem not in ("pixel", "line", "column")
    ) == ["a"]


def test_real_slides_cut_and_flipped(tmp_path, capsys):
    """A few of the 20 places to cut and 200 to flip that were tried by hand: read as it is, or a reason; a second or so for each."""
    rng = np.random.default_rng(0)
    (tmp_path / "slides").mkdir()
    for path in sorted(real("slides").iterdir()):
        data = path.read_bytes()
        for i in range(2):
            (tmp_path / "slides" / f"cut{i}-{path.name}").write_bytes(
                data[: int(len(data) * rng.random())]
            )
        for i in range(3):
            flipped, at = (
                bytearray(data),
                int(rng.integers(2048 if i else len(data))) * (-1) ** i,
            )  # anywhere, then where the directories lie
            flipped[at] ^= int(rng.integers(1, 256))
            (tmp_path / "slides" / f"flip{i}-{path.name}").write_bytes(flipped)
    tiny_encoder(tmp_path / "tiny.pt")
    start = time.time()
    status = tiling_main(
        [
            "features",
            str(tmp_path),
            "--device",
            "cpu",
            "--mpp",
            ".25",
            "--workers",
            "2",
            "--encoder",
            str(tmp_path / "tiny.pt"),
        ]
    )
    said, names = capsys.readouterr().err, [p.stem for p in (tmp_path / "slides").iterdir()]
    failed = re.findall("^failed: ([^:]*): .{10}", said, re.M)
    done = {p.stem for p in (tmp_path / "features").rglob("*.npy")}
    assert (
        status == (1 if failed else 0)
        and sorted([*failed, *done]) == sorted(names)
        and time.time() - start < 10 * len(names)
    )


def test_a_full_disk_stops_a_step_with_one_line_and_damages_nothing(
    two_slides, tmp_path, monkeypatch, capsys
):
    tiny_encoder(tmp_path / "tiny.pt")
    shutil.copytree(two_slides / "slides", tmp_path / "one" / "slides")
    argv = ("--device", "cpu", "--encoder", tmp_path / "tiny.pt")
    count = fill_disk(monkeypatch, 0)
    assert (
        status_of(capsys, commands_tiling, "supertiles", tmp_path / "one", *argv)[0] == 0
        and count[0] == 13
    )
    for at in range(1, 14):
        count = fill_disk(monkeypatch, at)
        status, said = status_of(capsys, commands_tiling, "supertiles", two_slides, *argv)
        assert not list(two_slides.rglob("*.tmp")) and not list(two_slides.rglob("lock*"))
        assert (status > 0) == (count[0] >= at)  # what was made before is not written again
        if status:
            assert [
                line
                for line in said
                if "No space left on device" in line and str(two_slides) in line
            ] and "Traceback" not in "".join(said)
    monkeypatch.undo()
    assert tiling_main(["supertiles", str(two_slides), *map(str, argv)]) == 0
    for part in ("tiles", "features", "supertiles"):
        assert folder_bytes(two_slides / part) == folder_bytes(tmp_path / "one" / part)


def test_mpp_column_and_png(two_slides):
    rgb = np.array(Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST))
    Image.fromarray(rgb).save(two_slides / "slides" / "c.png")
    (two_slides / "samples.csv").write_text("slide,patient,project,mpp\na,p,X,0.1\nc,q,X,0.6878\n")
    assert tiling_main(["tiles", str(two_slides)]) == 0
    mpp = {n: float(np.load(two_slides / "tiles" / f"{n}.npz")["mpp"]) for n in "ac"}
    assert (
        mpp == {"a": pytest.approx(0.5, rel=1e-3), "c": 0.6878}
        and not (two_slides / "tiles" / "b.npz").exists()
    )


@pytest.mark.parametrize(
    "table, words",
    [
        ("slide,patient\na,p\n", "no column project"),
        ("slide,patient,project\na,p,X\na,q,X\n", "line 3: slide a stands there twice"),
        ("slide,patient,project\na,Doe, Jane,X\n", "line 2: 4 fields, the header has 3"),
        ("slide;patient;project\na;p;X\n", "separated by commas"),
        ("slide,patient,project,patient\na,p,X,q\n", "a column stands there twice"),
        ("slide,patient,project\n\n\na,p,X\na,q,X\n", "line 5: slide a"),
        ("slide,patient,project\n../a,p,X\n", "is a path"),
        ("slide,patient,project\na,,X\n", "line 2: empty patient"),
        ("slide,patient,project\n", "no rows"),
        ("slide,patient,project,mpp\na,p,X,half\n", "mpp 'half' of slide a"),
        ("slide,patient,project,mpp\na,p,X,0_5\n", "mpp '0_5' of slide a"),
    ],
)
def test_samples_csv_mistakes(two_slides, table, words):
    (two_slides / "samples.csv").write_text(table)
    with pytest.raises(InputError, match=re.escape(words)):
        tiling_main(["tiles", str(two_slides)])
    (two_slides / "samples.csv").write_bytes("slide,patient,project\na,p,X\n".encode("utf-16"))
    with pytest.raises(InputError, match="UTF-8"):
        tiling_main(["tiles", str(two_slides)])


CELLS = st.sampled_from(
    [
        "",
        "a",
        "b",
        "é",
        "NA",
        "1e400",
        "-1",
        "0",
        "3.5",
        "../x",
        "a/b",
        "/etc/x",
        "..",
        ".",
        "\\x",
        'say "x"',
        "a,b",
        "a;b",
        "\0",
        "\r",
        "x\ny",
        "slide",
        "settings",
        "nan",
        " a ",
        "\ufeff",
        "x" * 300,
    ]
) | st.text(max_size=4)


def broken_tables(header):
    """Bytes of tables, whole and broken: separators, quotes, line ends, byte order marks, encodings, a cut end."""
    rows = st.lists(
        st.one_of(*(st.lists(CELLS, min_size=n, max_size=m) for n, m in ((0, 6), (3, 3), (4, 4)))),
        max_size=5,
    )
    quotes = st.sampled_from(
        [str, str, lambda c: '"' + c.replace('"', '""') + '"', lambda c: '"' + c]
    )
    join = lambda rows, sep, end, quote: end.join(sep.join(map(quote, row)) for row in rows) + end
    return st.builds(
        lambda header, rows, sep, end, quote, mark, cut, code: (
            mark + join([header, *rows], sep, end, quote)
        )[:cut].encode(code, "replace"),
        header,
        rows,
        st.sampled_from(",,,;\t"),
        st.sampled_from(["\n", "\r\n", "\r"]),
        quotes,
        st.sampled_from(["", "\ufeff"]),
        st.sampled_from([None, None, -3]),
        st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "cp1252"]),
    )


@hypothesis.settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(
    broken_tables(
        st.just(["slide", "patient", "project"])
        | st.just(["slide", "patient", "project", "mpp"])
        | st.lists(
            st.sampled_from(
                ["slide", "patient", "project", "mpp", "sample", "tumor", "msi", "", "slide "]
            ),
            max_size=6,
        )
    ),
    broken_tables(
        st.just(["slide", "G1", "G2"])
        | st.lists(st.sampled_from(["slide", "sample", "G1", "G2", "", "G1"]), max_size=5)
    ),
)
def test_any_table_is_read_or_refused_in_one_line_and_nothing_is_written_outside_the_cohort(
    samples, expression
):
    """Property, by hypothesis (1,500 examples were tried by hand)."""
    with tempfile.TemporaryDirectory() as outside:
        cohort = Path(outside) / "in" / "cohort"
        (cohort / "slides").mkdir(parents=True)
        for name, content in (
            ("slides/a.png", b"no slide"),
            ("samples.csv", samples),
            ("expression.csv", expression),
        ):
            (cohort / name).write_bytes(content)
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
        assert all(cohort in p.parents for p in Path(outside).rglob("*") if p.is_file())


def test_names_that_are_no_files_are_refused_and_others_kept(two_slides):
    for name in ("a\tb", "a\0", "settings", "x" * 201, "é" * 101):
        (two_slides / "samples.csv").write_text(f'slide,patient,project\n"{name}",p,X\n')
        with pytest.raises(InputError, match="line 2: slide .* can't be the name of a file here"):
            tiling_main(["tiles", str(two_slides)])
    for name in ("é ü 漢字", "it's (1) #2; 50%", "-rf", "a.b.c", "'" * 99):
        (two_slides / "slides" / "a.tif").replace(two_slides / "slides" / f"{name}.tif")
        (two_slides / "samples.csv").write_text(
            f"slide,patient,project\n{name},p,X\n", encoding="utf-8"
        )
        assert (
            tiling_main(["tiles", str(two_slides)]) == 0
            and (two_slides / "tiles" / f"{name}.npz").is_file()
        )
        (two_slides / "slides" / f"{name}.tif").replace(two_slides / "slides" / "a.tif")


def test_damaged_features_are_made_again_and_a_folder_in_their_place_is_that_slides_failure(
    two_slides, capsys
):
    tiny_encoder(two_slides / "tiny.pt")
    run = lambda: tiling_main(
        ["features", str(two_slides), "--device", "cpu", "--encoder", str(two_slides / "tiny.pt")]
    )
    assert run() == 0
    folder = two_slides / "features" / "tiny"
    whole = (folder / "a.json").read_text()
    for text in (
        "[1]",
        '"x"',
        '{"tiles": "x"}',
        '{"encoder": "tiny", "weights": "x", "tiles": "x"}',
    ):
        (folder / "a.json").write_text(text)
        assert run() == 0 and (folder / "a.json").read_text() == whole
    (folder / "a.npy").unlink(), (folder / "a.npy").mkdir(), (folder / "b.json").unlink()
    assert (
        run() == 1
        and f"failed: a: {folder}/a.npy is a folder: move it away" in capsys.readouterr().err
        and (folder / "b.json").is_file()
    )


class Framed:
    """Stands for a MIRAX slide: a picture that begins at pixel (640, 384) of a larger frame; the rest was not scanned, but for a stain beyond the bounds."""

    start, dimensions, level_downsamples, level_count, color_profile = (
        (640, 384),
        (3200, 2400),
        (1.0,),
        1,
        None,
    )

    def __init__(self, rgb):
        h, w = rgb.shape[:2]
        self.frame, self.level_dimensions = np.zeros((2400, 3200, 4), np.uint8), (self.dimensions,)
        self.frame[384 : 384 + h, 640 : 640 + w] = np.dstack([rgb, np.full((h, w), 255)])
        self.frame[2000:, 2600:] = (150, 60, 150, 255)
        self.properties = {
            "openslide.vendor": "mirax",
            "openslide.mpp-x": "0.5",
            "openslide.mpp-y": "0.505",
        }
        self.properties.update(
            {
                f"openslide.bounds-{k}": str(v)
                for k, v in zip(("x", "y", "width", "height"), (640, 384, w, h))
            }
        )

    def read_region(self, corner, level, size):
        (x, y), (w, h) = corner, size
        out = np.zeros((h, w, 4), np.uint8)
        part = self.frame[y : y + h, x : x + w]
        out[: part.shape[0], : part.shape[1]] = part
        return Image.fromarray(out, "RGBA")


def test_slides_in_a_larger_frame_keep_openslides_and_trade_in_qupaths(
    tmp_path, monkeypatch, capsys
):
    """Tissue is looked for within the bounds; our coordinates are OpenSlide's; GeoJSON and centroids are QuPath's, which begin at the bounds."""
    rgb = np.array(Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST))
    opened, slide, whole = open_slide, Framed(rgb), np.array([640, 384])
    for d in ("slides", "points", "regions", "h5"):
        (tmp_path / d).mkdir()
    write_pyramid(tmp_path / "slides" / "plain.tif", rgb)
    Image.fromarray(rgb[:20, :20]).save(tmp_path / "slides" / "m.png")  # stands in the folder
    swap(
        monkeypatch,
        "lab.cohort.slides",
        "open_slide",
        lambda path: slide if Path(path).stem == "m" else opened(path),
    )
    assert tiling_main(["doctor", str(tmp_path)]) == 0 and "m: 3,200 x 2,400 px, mirax" in (
        said := capsys.readouterr().out
    )
    assert "scanned: 1,600 x 1,280 px from (640, 384)" in said and said.count("scanned:") == 1
    assert (
        tiling_main(["tiles", str(tmp_path), "--tile-um", "80.4"]) == 0
    )  # 160 px: both frames have their grid in common
    plain, framed = (tiles_of(tmp_path, name)[0]["coords"] for name in ("plain", "m"))
    assert (
        framed.min(0).min() >= 384 and (framed + 160 <= whole + (1600, 1280)).all()
    )  # the stain beyond is no tissue
    inside = tiling.thumbnail(slide, 0.5)
    assert inside[1].sum() == 100 * 80 and (inside[0][~inside[1]] == 255).all()
    assert tiling_main(["export", str(tmp_path), "m", "--geojson"]) == 0
    shapes = json.loads((tmp_path / "export" / "resnet50" / "m.geojson").read_text())["features"]
    assert [f["geometry"]["coordinates"][0][0] for f in shapes] == (framed - whole).tolist()
    um, origin = qupath_frame(slide, 0.5025)
    assert um.tolist() == [0.5, 0.505] and np.array_equal(origin, whole)
    assert [v.tolist() for v in qupath_frame(opened(tmp_path / "slides" / "plain.tif"), 0.5)] == [
        [0.5, 0.5],
        [0, 0],
    ]
    rng = np.random.default_rng(3)
    write_cohort(tmp_path, rng, patients=9, tiles=40)
    grid = (
        np.stack(np.meshgrid(np.arange(8), np.arange(5)), -1).reshape(-1, 2) * 200 + whole
    )  # features made elsewhere, in OpenSlide's frame
    with h5py.File(tmp_path / "h5" / "s00_0.h5", "w") as h:
        x = rng.normal(size=(40, 8))
        h["features"], h["coords"] = x.astype(np.float16), grid
        h["coords"].attrs["patch_size_level0"] = 200
    Image.fromarray(rgb[:20, :20]).save(tmp_path / "slides" / "s00_0.png")
    swap(monkeypatch, "lab.cohort.slides", "open_slide", lambda path: slide)
    assert train(tmp_path, "--epochs", "2") == 0
    heatmap = lambda *argv: he2rna_main(
        [
            "heatmap",
            str(tmp_path / "runs" / "he2rna"),
            "s00_0",
            "--genes",
            "G0",
            "--device",
            "cpu",
            *argv,
        ]
    )
    assert heatmap() == 0
    folder = tmp_path / "runs" / "he2rna" / "heatmaps" / "G0" / "s00_0"
    score = np.array([float(r["score"]) for r in read_csv(folder / "tiles.csv")])
    rings = np.array(
        [
            f["geometry"]["coordinates"][0][:4]
            for f in json.loads((folder / "tiles.geojson").read_text())["features"]
        ]
    )
    assert np.array_equal(rings[:, 0], grid - whole) and [
        (int(r["x"]), int(r["y"])) for r in read_csv(folder / "tiles.csv")
    ] == list(map(tuple, grid.tolist()))
    best, top = np.flatnonzero(score > np.median(score)), int(score.argmax())
    shapes = [feature("Polygon", [rings[i].tolist()], "Tumor") for i in best] + [
        feature("Polygon", [rings[score.argmin()].tolist()], "Necrosis")
    ]
    (tmp_path / "regions" / "s00_0.geojson").write_text(
        json.dumps(dict(type="FeatureCollection", features=shapes))
    )
    center = (rings[top].mean(0) * um).tolist()
    (tmp_path / "points" / "s00_0.csv").write_text(
        f"Image,Class,Centroid X µm,Centroid Y µm\nm.mrxs,Tumor,{center[0]},{center[1]}\n"
    )
    capsys.readouterr()
    assert heatmap("--regions", "Tumor", "--cells", "Tumor") == 0
    assert "outline AUC 1.000" in capsys.readouterr().out
    assert [int(r["cells: Tumor"]) for r in read_csv(folder / "tiles.csv")] == [
        int(i == top) for i in range(40)
    ]
    assert (
        "## Outline of Tumor" in (folder / "report.md").read_text()
        and heatmap("--cells", "Tumor") == 0
    )
    assert "outline AUC 0.9" in capsys.readouterr().out  # all classes together
    assert heatmap("--regions", "Stroma") == 0
    assert (
        re.search(
            "no region of class Stroma; it has Necrosis, Tumor", said := capsys.readouterr().out
        )
        and "outline" not in said
    )


def test_the_rule_of_tissue_is_part_of_the_tiles_and_the_usual_one_is_as_before(two_slides, capsys):
    run = lambda *a: tiling_main(["tiles", str(two_slides), *a])
    assert run() == 0
    first, settings = (
        folder_bytes(two_slides, ".npz"),
        json.loads(str(np.load(two_slides / "tiles" / "a.npz")["settings"])),
    )
    assert (
        set(settings)
        == {"tile_um", "min_tissue", "max_tiles", "mpp", "seed", "file"}
        == {*json.loads((two_slides / "tiles" / "settings.json").read_text()), "file"}
    )  # tiles made before these options stay valid
    made = {p: p.stat().st_mtime_ns for p in two_slides.rglob("*.npz")}
    assert run("--tissue", "stain", "--min-area", "0", "--tissue-threshold", "otsu") == 0
    assert {p: p.stat().st_mtime_ns for p in made} == made
    capsys.readouterr()
    assert run("--tissue", "saturation", "--tissue-threshold", "8") == 0
    assert (
        "2 slides are made anew: tissue stain -> saturation, tissue_threshold otsu -> 8.0"
        in capsys.readouterr().out
    )
    cut = np.load(two_slides / "tiles" / "a.npz")
    assert (
        cut["threshold"] == 8
        and json.loads(str(cut["settings"]))["tissue"] == "saturation"
        and run() == 0
    )
    assert np.load(two_slides / "tiles" / "a.npz")["threshold"] == 8  # as it was made
    assert (
        tiling_main(["doctor", str(two_slides)]) == 0
        and "fixed threshold 8 of saturation" in capsys.readouterr().out
    )
    assert (
        run("--tissue-threshold", "otsu") == 0
        and np.load(two_slides / "tiles" / "a.npz")["threshold"] > 8
    )
    assert run("--tissue", "stain") == 0 and folder_bytes(two_slides, ".npz") == first
    n = {}  # an ellipse of 360 x 320 µm is 7.2 tiles of 112 µm, a square of 240 µm 4.6
    for area in (0, 3.5, 6, 12):
        assert run("--min-area", str(area)) == (area == 12)
        n[area] = len(np.load(two_slides / "tiles" / "a.npz")["coords"])
    assert (
        n[0] == n[3.5] > n[6] > n[12] == 0 and "--min-area is too high" in capsys.readouterr().err
    )
    with pytest.raises(
        InputError, match="--tissue-threshold 8 is a level of saturation: add --tissue saturation"
    ):
        run("--tissue-threshold", "8")


def stained_slides(folder):
    """slides/a.tif and b.tif: one tissue, two stains; dabs of 8 pixels on glass."""
    for name, pair in (("a", "reddish"), ("b", "bluish")):
        rgb = np.full((1280, 1600, 3), 243, np.uint8)
        dabs = np.kron(
            stained(STAIN_PAIRS[pair], n=100 * 120)[0].reshape(100, 120, 3),
            np.ones((8, 8, 1), np.uint8),
        )
        rgb[200:1000, 300:1260] = dabs
        write_pyramid(folder / "slides" / f"{name}.tif", rgb)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_colour_is_part_of_the_features_and_of_no_tile(two_slides, capsys):
    stained_slides(two_slides)
    net = tiny_encoder(two_slides / "tiny.pt")
    run = lambda *a: tiling_main(
        [
            "features",
            str(two_slides),
            "--device",
            "cpu",
            "--encoder",
            str(two_slides / "tiny.pt"),
            *a,
        ]
    )
    folder = two_slides / "features" / "tiny"
    assert run("--precision", "float32") == 0
    plain, tiles = folder_bytes(folder, ".npy"), folder_bytes(two_slides / "tiles", ".npz")
    assert "stains" not in json.loads((folder / "a.json").read_text())
    capsys.readouterr()
    assert run("--colour", "macenko", "--workers", "1") == 0
    assert "2 slides are made anew: colour none -> macenko" in capsys.readouterr().out
    made, side = folder_bytes(folder, ".npy"), json.loads((folder / "a.json").read_text())
    assert (
        made != plain
        and folder_bytes(two_slides / "tiles", ".npz") == tiles
        and side["colour"] == "macenko"
    )
    means = []
    for name, pair in (("a", "reddish"), ("b", "bluish")):
        pixels, slide, coords, tile = pixels_of(two_slides, name)
        found = tiling.slide_stains(slide, coords, tile, 224, 0)
        side = json.loads((folder / f"{name}.json").read_text())["stains"]
        assert (
            np.allclose(side["vectors"], found[0], atol=1e-4)
            and side["unchanged"] == 0
            and degrees_between(found[0], STAIN_PAIRS[pair]).max() < 2
        )
        normal = tiling.macenko(pixels, found)[0]
        with torch.no_grad():
            assert (
                relative(
                    np.load(folder / f"{name}.npy"), net(tiling.normalise(torch.from_numpy(normal)))
                )
                < 1e-3
            )
        means.append((pixels.mean((0, 1, 2)), normal.mean((0, 1, 2))))
    (seen_a, normal_a), (seen_b, normal_b) = means
    assert np.abs(normal_a - normal_b).max() < 2 < 5 < np.abs(seen_a - seen_b).max()
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert run() == 0 and {p: p.stat().st_mtime_ns for p in times} == times  # as it was made
    for p in folder.glob("*.npy"):
        p.unlink()
    assert run("--workers", "4") == 0 and folder_bytes(folder, ".npy") == made
    one = np.full((1280, 1600, 3), 243, np.uint8)
    one[200:900, 300:1400] = (170, 90, 150)  # one colour: no two stains
    write_pyramid(two_slides / "slides" / "c.tif", one)
    capsys.readouterr()
    assert run() == 0
    n, side = len(np.load(folder / "c.npy")), json.loads((folder / "c.json").read_text())
    assert side["stains"] == dict(vectors=None, top=None, unchanged=n) and n > 10
    assert (
        f"--colour macenko: {n} tiles hold too little stain and keep their colours, of c"
        in capsys.readouterr().out
    )
    (two_slides / "slides" / "c.tif").unlink()
    assert (
        run("--colour", "none") == 0
        and {k: v for k, v in folder_bytes(folder, ".npy").items() if k != "c.npy"} == plain
    )


def save_encoder(path, seed=0, **changes):
    """An encoder checkpoint as histcode.py pretrain writes it; returns its network."""
    net = random_resnet(3)
    torch.manual_seed(seed)
    torch.nn.init.normal_(net.layer3[5].bn3.bias, 0, 0.5)
    saved = dict(
        version=1,
        source="HistCode",
        method="adco",
        encoder=net.state_dict(),
        stages=3,
        n_features=1024,
        projection={},
        settings={},
        mean=(0.7, 0.5, 0.6),
        std=(0.2, 0.25, 0.15),
        tile_px=256,
        tile_um=128.0,
        colour="none",
    )
    torch.save({k: v for k, v in {**saved, **changes}.items() if v is not None}, path)
    return net


def test_features_of_an_encoder_file(two_slides, capsys):
    file = two_slides / "adco.pt"
    run = lambda verb, *a: tiling_main(
        [
            verb,
            str(two_slides),
            "--device",
            "cpu",
            "--encoder",
            str(file),
            "--precision",
            "float32",
            *a,
        ]
    )
    stained_slides(two_slides)
    net = save_encoder(file, colour="macenko")
    assert (
        run("doctor") == 0
        and "resampled to 0.5; a tile is 128 µm = 256.0 px" in capsys.readouterr().out
    )
    assert run("supertiles") == 0  # its tile size and its colours, unasked
    folder, by = two_slides / "features" / "adco", tiles_of(two_slides, "a")[1]
    side = json.loads((folder / "a.json").read_text())
    assert (
        by["tile_um"] == 128
        and side["tile_px"] == 256
        and side["colour"] == "macenko"
        and side["encoder"] == "adco"
    )
    assert (
        side["weights"].startswith("adco.pt sha256 ")
        and (two_slides / "supertiles" / "adco" / "a.npz").is_file()
    )
    pixels, slide, coords, tile = pixels_of(two_slides, "a", 256)
    pixels, changed = tiling.macenko(pixels, tiling.slide_stains(slide, coords, tile, 256, 0))
    assert changed.all()
    x = (
        torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        - torch.tensor([0.7, 0.5, 0.6]).view(3, 1, 1)
    ) / torch.tensor([0.2, 0.25, 0.15]).view(3, 1, 1)
    with torch.no_grad():
        want = net(x).numpy()
    got = np.load(folder / "a.npy")
    assert got.shape == want.shape == (len(pixels), 1024) and relative(got, want) < 1e-3
    made = {p: p.stat().st_mtime_ns for p in folder.glob("*.npy")}
    assert run("features") == 0 and {p: p.stat().st_mtime_ns for p in made} == made
    capsys.readouterr()
    save_encoder(file, 1, colour="macenko")  # another file of the same name
    assert run("features") == 0
    assert re.search(
        "2 slides are made anew: weights adco.pt sha256 .* -> adco.pt sha256",
        capsys.readouterr().out,
    )
    assert relative(np.load(folder / "a.npy"), got) > 0.01
    for argv, words in (
        (["--colour", "none"], "--colour none: .*adco.pt learned from --colour macenko"),
        (["--weights", "random"], "adco.pt is network and weights"),
        (
            ["--tile-um", "112"],
            "adco.pt learned from tiles of 128 µm, --tile-um is 112: --tile-um 128 cuts them anew",
        ),
    ):
        with pytest.raises(InputError, match=words):
            run("features", *argv)
    assert tiling_main(["tiles", str(two_slides), "--tile-um", "112"]) == 0
    with pytest.raises(
        InputError,
        match="learned from tiles of 128 µm, those in .*tiles are of 112: --tile-um 128 cuts them anew",
    ):
        run("features")
    assert run("features", "--tile-um", "128") == 0  # the mend works


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_file_gives_its_modules_features(two_slides):
    net = tiny_encoder(two_slides / "plain.pt")
    torch.jit.freeze(torch.jit.script(net)).save(two_slides / "frozen.pt")  # no parameters left
    torch.jit.trace(net, torch.zeros(1, 3, 224, 224)).save(two_slides / "traced.pt")
    for name, precision, error in (
        ("plain", "float32", 1e-3),
        ("frozen", "bfloat16", 0.02),
        ("frozen", "float32", 1e-3),
        ("traced", "bfloat16", 0.02),
    ):
        assert (
            tiling_main(
                [
                    "features",
                    str(two_slides),
                    "--encoder",
                    str(two_slides / f"{name}.pt"),
                    "--device",
                    "cpu",
                    "--precision",
                    precision,
                ]
            )
            == 0
        )
        pixels, _, _, tile = pixels_of(two_slides, "b")
        with torch.no_grad():
            want = net(tiling.normalise(torch.from_numpy(pixels))).numpy()
        got = np.load(two_slides / "features" / name / "b.npy")
        assert (
            tile == pytest.approx(224)
            and got.shape == want.shape == (len(pixels), 7)
            and relative(got, want) < error
        )


class Odd(torch.nn.Module):
    """A network that is no encoder, of one kind or another."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        y = x.flatten(1)[:, :5]
        if self.kind == "four":
            y = y[:, :, None, None]
        if self.kind == "nan":
            y = y / 0
        if self.kind == "batch":
            y = y[:1]
        if self.kind == "squeeze":
            y = y.squeeze(0)
        if self.kind == "few" and x.shape[0] > 2:
            y = y[:2]
        if self.kind == "late" and bool((x.abs().sum() > 0).item()):
            y = y / 0
        if self.kind == "fails" and x.shape[0] > 2:
            y = y.view(7, 7)
        return y


class Two(torch.nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_that_gives_no_features_says_why(two_slides, tmp_path, capsys):
    file = tmp_path / "odd.pt"
    run = lambda: tiling_main(
        [
            "features",
            str(two_slides),
            "--encoder",
            str(file),
            "--device",
            "cpu",
            "--precision",
            "float32",
        ]
    )
    for kind, words in (
        ("four", r"2 tiles of 224 px give \(2, 5, 1, 1\)"),
        ("nan", "a black tile gives NaN"),
        ("batch", r"2 tiles of 224 px give \(1, 5\)"),
        ("squeeze", r"1 tile of 224 px give \(5,\)"),
        ("two", "it gives a tuple, not one tensor"),
    ):
        torch.jit.script(Two() if kind == "two" else Odd(kind)).save(file)
        with pytest.raises(
            InputError, match=r"odd.pt: can't map \(B, 3, 224, 224\) to \(B, D\): " + words
        ):
            run()
    assert not (two_slides / "tiles").exists()
    for kind, words in (
        ("few", r"failed: a: the encoder gives \(2, 5\) for 8 tiles, not \(8, 5\)"),
        ("late", "failed: a: the encoder gives NaN or infinite features"),
        ("fails", "failed: a: the encoder fails on 8 tiles: "),
    ):
        torch.jit.script(Odd(kind)).save(file)
        assert (
            run() == 1
            and re.search(words, said := capsys.readouterr().err)
            and "2 of 2 slides failed" in said
        )
        assert not list((two_slides / "features").rglob("*.npy"))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_json_beside_a_torchscript_says_what_it_wants(two_slides, capsys):
    file, side = two_slides / "tiny.pt", two_slides / "tiny.pt.json"
    net, want = (
        tiny_encoder(file),
        dict(mean=[0.7, 0.5, 0.6], std=[0.2, 0.25, 0.15], tile_px=192, tile_um=128),
    )
    run = lambda *argv: tiling_main(
        [
            "features",
            str(two_slides),
            "--encoder",
            str(file),
            "--device",
            "cpu",
            "--precision",
            "float32",
            *argv,
        ]
    )
    side.write_text(json.dumps(want))
    assert run() == 0
    pixels, _, _, tile = pixels_of(two_slides, "a", 192)
    x = (
        torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        - torch.tensor(want["mean"]).view(3, 1, 1)
    ) / torch.tensor(want["std"]).view(3, 1, 1)
    with torch.no_grad():
        assert (
            tile == pytest.approx(256)
            and relative(np.load(two_slides / "features" / "tiny" / "a.npy"), net(x)) < 1e-3
        )
    capsys.readouterr()
    side.write_text(
        json.dumps(dict(want, mean=[0.5, 0.5, 0.5]))
    )  # the same network, other features
    assert run() == 0 and re.search(
        "2 slides are made anew: weights tiny.pt sha256 .* -> tiny.pt sha256",
        capsys.readouterr().out,
    )
    with pytest.raises(InputError, match="tiny.pt learned from tiles of 128 µm, --tile-um is 112"):
        run("--tile-um", "112")
    for said in (
        "[]",
        "no",
        '{"mean": [1, 2]}',
        '{"std": [0, 1, 1]}',
        '{"tile_px": 224.5}',
        '{"tile_um": "112"}',
        '{"colour": "reinhard"}',
        '{"means": [1, 1, 1]}',
        '{"mean": [NaN, 1, 1]}',
        '{"tile_px": true}',
    ):
        side.write_text(said)
        with pytest.raises(
            InputError, match="tiny.pt.json: .* can't be meant: wanted a JSON object"
        ):
            run()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_files_that_are_no_encoder_say_one_line(two_slides, tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "nothing.pt").write_bytes(b"")
    torch.save(random_resnet(3).state_dict(), tmp_path / "state.pt")
    torch.save(random_resnet(3), tmp_path / "object.pt")
    save_encoder(tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:9999])
    save_encoder(tmp_path / "resnet50.pt")
    for name, changes in (
        ("new", dict(version=2)),
        ("mean", dict(mean=None)),
        ("colour", dict(colour="reinhard")),
        ("stages", dict(stages=4)),
        ("px", dict(tile_px="x")),
        ("px0", dict(tile_px=0)),
        ("short", dict(mean=[0.5])),
        ("std", dict(std=(0, 1, 1))),
        ("um", dict(tile_um=[1])),
        ("nine", dict(stages=9)),
    ):
        save_encoder(tmp_path / f"{name}.pt", **changes)
    torch.jit.script(torch.nn.Conv2d(3, 4, 3)).save(tmp_path / "map.pt")
    for name, words in (
        ("text", "text.pt: not a whole encoder file"),
        ("nothing", "not a whole encoder file"),
        ("half", "half.pt: not a whole encoder file"),
        ("object", "not a whole encoder file"),
        ("state", "no encoder's checkpoint; .*--weights .*state.pt"),
        ("new", "of version 2, this program reads version 1"),
        ("mean", "the checkpoint has no mean"),
        ("colour", "colour 'reinhard' can't be meant"),
        ("px", "tile_px 'x' can't"),
        ("px0", "tile_px 0 "),
        ("short", r"mean .0.5. can't"),
        ("std", "std "),
        ("um", r"tile_um .1. can't"),
        ("nine", "stages 9 can't be meant"),
        ("absent", "no such file, nor one of resnet50, resnet50-stage3"),
        ("stages", "stages.pt: [0-9]+ of [0-9]+ entries are missing"),
        ("resnet50", "rename it"),
        ("map", "map.pt: can't map .* to .B, D."),
    ):
        with pytest.raises(InputError, match=words) as e:
            tiling_main(
                [
                    "features",
                    str(two_slides),
                    "--device",
                    "cpu",
                    "--encoder",
                    str(tmp_path / f"{name}.pt"),
                ]
            )
        assert "\n" not in str(e.value)
    assert not (two_slides / "features").exists() and not (two_slides / "tiles").exists()


@pytest.mark.parametrize(
    "damage",
    [
        dict(settings="{"),
        dict(settings="[1]"),
        dict(settings=3),
        dict(settings="[" * 9999),
        dict(coords=None),
        dict(found=None),
        dict(tile=np.nan),
        dict(tile=-1.0),
        dict(coords=WHOLE_TILES["coords"] - 1),
        dict(coords=WHOLE_TILES["coords"].astype(np.int64) + 2**62),
        dict(mpp=0.0),
        dict(coords=np.arange(10)),
        dict(found=np.ones(3, int)),
    ],
)
def test_tiles_that_are_not_whole_are_as_if_not_there(tmp_path, damage):
    (tmp_path / "tiles").mkdir()
    for change in ({}, damage):
        np.savez(
            tmp_path / "tiles" / "a.npz",
            **{k: v for k, v in {**WHOLE_TILES, **change}.items() if v is not None},
        )
        assert (tiles_of(tmp_path, "a") == (None, None)) == bool(change)
