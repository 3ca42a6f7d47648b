"""Slide files: finding, opening, µm per pixel. Authorities: Pillow, tifffile, real slides."""

import re
import resource
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

import tiling
from lab.cohort.slides import find_slides, open_slide, passed_over, slide_mpp
from lab.cohort.tiles import find_tiles, tiles_of
from lab.commands.tiling import main
from lab.files import InputError, fingerprint
from lab.tests.helpers import (
    degrees_between,
    painted,
    real,
    tiny_encoder,
    write_pyramid,
)

GREY = np.full((900, 900, 3), 150, np.uint8)


# ----- µm per pixel ------------------------------------------------------------------------------


class FakeSlide:
    def __init__(self, *mpp):
        axes = zip("xy", mpp, strict=False)
        self.properties = {f"openslide.mpp-{axis}": value for axis, value in axes}


def test_mpp_comes_from_the_slide_then_the_table_then_the_option():
    assert slide_mpp(FakeSlide("0.25", "0.252"), 0.5, "a") == (pytest.approx(0.251), "slide")
    assert slide_mpp(FakeSlide(), 0.5, "a") == (0.5, "given")
    assert slide_mpp(FakeSlide("1000", "1000"), 0.5, "a") == (0.5, "given")  # the mend works
    assert slide_mpp(FakeSlide("0.25", "0.25"), 0.5, "a", force=True) == (0.5, "given")
    assert slide_mpp(FakeSlide("0.25", "0.25"), None, "a", force=True) == (0.25, "slide")


def test_pixels_that_are_not_square_are_refused_with_the_factor():
    slide = FakeSlide("0.25", "0.5")
    with pytest.raises(
        InputError, match=r"not square, 0.25 x 0.5 µm, a factor of 2; .*--force-mpp"
    ):
        slide_mpp(slide, 0.5, "a")
    assert slide_mpp(slide, 0.5, "a", force=True) == (0.5, "given")
    for x, y in ((0.25, 0.375), (0.375, 0.25), (0.25, 0.27), (0.27, 0.25)):
        with pytest.raises(InputError, match=f"not square, {x} x {y} µm"):
            slide_mpp(FakeSlide(str(x), str(y)), None, "a")
    assert slide_mpp(FakeSlide("0.26", "0.25"), None, "a") == (pytest.approx(0.255), "slide")


@pytest.mark.parametrize(
    "mpp, given",
    [
        ((), None),
        (("0", "0"), None),
        (("nan", "nan"), None),
        (("0.25", "0.5"), None),
        (("0.25",), None),
        (("1e9", "1e9"), None),
        ((), 50.0),
        ((), float("nan")),
    ],
)
def test_mpp_that_cannot_be_is_refused_with_the_mends(mpp, given):
    mends = r"slide a: .*samples.csv, --mpp .*file itself"
    with pytest.raises(InputError, match=mends):
        slide_mpp(FakeSlide(*mpp), given, "a")


# ----- Files that are no slide, or not as they seem ----------------------------------------------


def test_what_is_left_of_a_slide_is_no_picture_of_it(tmp_path):
    """Pillow opens the first page of a real .svs or tiled .tif that is cut off behind it, and the
    label that a .mrxs is: all are refused.
    """
    whole = real("slides", "CMU-1-Small-Region.svs").read_bytes()
    for name in ("a.svs", "a.tif"):
        (tmp_path / name).write_bytes(whole[: int(0.75 * len(whole))])
    Image.fromarray(GREY).save(tmp_path / "a.mrxs", "JPEG")
    for path in sorted(tmp_path.iterdir()):
        assert Image.open(path).size[0] >= 900
        why = f"{path.name}: not a readable slide .(OpenSlide doesn't know it|its page 2 is not in)"
        with pytest.raises(InputError, match=why):
            open_slide(path)


def write_pictures(folder, rgb):
    """One picture as many files say that it lies; `tiled` is the one that is refused."""
    folder.mkdir()
    upright, turned = Image.fromarray(rgb), Image.fromarray(np.rot90(rgb))
    exif = Image.Exif()
    exif[274] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    upright.save(folder / "upright.jpg", quality=95)
    turned.save(folder / "turned.jpg", quality=95, exif=exif)
    upright.save(folder / "plain.png")
    upright.save(folder / "profile.png", icc_profile=profile)
    upright.save(folder / "broken.png", icc_profile=b"no profile")
    for name, tag, tile in (
        ("strips", 6, None),
        ("tiled", 6, (256, 256)),
        ("right", 1, (256, 256)),
    ):
        tifffile.imwrite(
            folder / f"{name}.tif",
            np.rot90(rgb) if tag == 6 else rgb,
            photometric="rgb",
            tile=tile,
            extratags=[(274, 3, 1, tag, True)],
            metadata=None,
        )


def test_pictures_lie_as_their_tag_says(tmp_path, capsys):
    """EXIF of a .jpg and the tag of an untiled TIFF are followed, as Pillow does; a tiled TIFF,
    whose tiles OpenSlide would turn one by one, is refused.
    """
    rgb = Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST)
    slides = tmp_path / "slides"
    write_pictures(slides, np.array(rgb))
    assert main(["doctor", str(tmp_path), "--mpp", "0.5"]) == 1
    said = capsys.readouterr()
    why = "its orientation tag is 6, with which OpenSlide turns each of its tiles by itself"
    assert "tiled: " in said.err
    assert why in said.err
    assert "1 of 8 slides failed" in said.err
    blocks = {text.split(":")[0]: text for text in re.split(r"\n(?! )", said.out)}
    for name in ("upright", "turned", "profile", "broken", "plain", "strips", "right"):
        is_turned = "turned upright: its orientation tag is 6" in blocks[name]
        has_profile = "ICC profile present: not applied" in blocks[name]
        assert "1,600 x 1,280 px" in blocks[name]
        assert is_turned == (name in ("turned", "strips"))
        assert has_profile == (name in ("profile", "broken"))
    assert main(["tiles", str(tmp_path), "--mpp", "0.5"]) == 1
    names = [path.stem for path in (tmp_path / "tiles").glob("*.npz")]
    coords = tiles_of(tmp_path, "plain")[0]["coords"]
    assert len(names) == 7
    for name in names:
        assert np.array_equal(tiles_of(tmp_path, name)[0]["coords"], coords)
    first = {
        path.stem: tiling.read_tiles(open_slide(path), coords[:1], 224)
        for path in slides.iterdir()
        if path.stem != "tiled"
    }
    for name in ("profile", "right", "strips"):
        assert np.array_equal(first[name], first["plain"])
    assert np.abs(first["turned"].astype(int) - first["plain"]).mean() < 4


def test_pictures_larger_than_pillow_opens_unasked(tmp_path):
    Image.new("1", (16000, 12000)).save(tmp_path / "large.png")
    assert open_slide(tmp_path / "large.png").dimensions == (16000, 12000)


def png_that_claims(path, width, height):
    """A small PNG whose header claims another size, its checksum made right."""
    Image.fromarray(GREY[:1, :1]).save(path)
    data = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    checksum = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(data[:12] + header + checksum + data[33:])


def tiff_that_claims(path, tag):
    """A pyramid whose width or height is claimed to be 2^29, with as many tiles as that has."""
    write_pyramid(path, GREY[:600, :600], levels=1)
    with tifffile.TiffFile(path, mode="r+") as t:
        tags = t.pages[0].tags
        tags[tag].overwrite(2**29)
        for name in ("TileOffsets", "TileByteCounts"):
            tags[name].overwrite([tags[name].value[0]] * (3 * 2**21))


def svs_that_claims(path, mpp):
    with tifffile.TiffWriter(path) as t:
        t.write(
            GREY[:512, :512],
            tile=(256, 256),
            photometric="rgb",
            compression="zlib",
            metadata=None,
            description="Aperio Image Library v1\r\n512x512 [0,0 512x512] (256x256)"
            f"|MPP = {mpp}|AppMag = 20",
        )


def test_slides_that_cannot_be_meant_have_a_reason_each(two_slides, capsys):
    """Sizes and scales that are wrong, claimed or too small; the good slide among them is done."""
    slides = two_slides / "slides"
    (slides / "b.tif").unlink()
    why = {"pixel": "smaller than a tile", "line": "smaller than", "column": "smaller than"}
    Image.fromarray(GREY[:1, :1]).save(slides / "pixel.png")
    Image.fromarray(np.full((1, 100_000, 3), 150, np.uint8)).save(slides / "line.png")
    Image.fromarray(np.full((100_000, 1, 3), 150, np.uint8)).save(slides / "column.png")
    png_that_claims(slides / "bomb.png", 60_000, 60_000)
    png_that_claims(slides / "hollow.png", 3_000, 3_000)
    tiff_that_claims(slides / "wide.tif", "ImageWidth")
    tiff_that_claims(slides / "high.tif", "ImageLength")
    why["bomb"] = "not a readable slide .*exceeds limit"
    why["hollow"] = "truncated|broken|can't be read"
    why["wide"] = why["high"] = "more than a glass slide has"
    rows = ["slide,patient,project,mpp", "a,p,X,", *(f"{name},p,X,0.5" for name in why)]
    for i, mpp in enumerate(("0", "-1", "nan", "1e9", "1e400")):
        Image.fromarray(GREY).save(slides / f"table{i}.png")
        svs_that_claims(slides / f"own{i}.svs", mpp)
        rows += [f"table{i},p,X,{mpp}", f"own{i},p,X,"]
        why[f"table{i}"], why[f"own{i}"] = "is outside 0.05-20", "its file says|no µm per pixel"
    (two_slides / "samples.csv").write_text("\n".join(rows))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["tiles", str(two_slides), "--workers", "2"]) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB
    said = capsys.readouterr().err
    for name, words in why.items():
        assert re.search(f"failed: {name}: .*({words})", said), name
    made = {path.stem for path in (two_slides / "tiles").glob("*.npz")}
    assert made - {"pixel", "line", "column"} == {"a"}


# ----- Slides of several files, and files of several pages ---------------------------------------


def dicom(path, series, explicit=True, more=0):
    """What a DICOM file begins with, by PS3.5; a sequence before refers to another series."""

    def element(group, number, kind, value, length=None):
        length = len(value) if length is None else length
        head = struct.pack("<HH", group, number)
        if group > 2 and not explicit:
            return head + struct.pack("<I", length) + value
        if kind == b"SQ":
            return head + kind + struct.pack("<HI", 0, length) + value
        return head + kind + struct.pack("<H", length) + value

    syntax = b"1.2.840.10008.1.2.1" if explicit else b"1.2.840.10008.1.2"
    inner = element(0x20, 0xE, b"UI", b"9.9.9.9")
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes(128)
        + b"DICM"
        + element(2, 0x10, b"UI", syntax + b"\0" * (len(syntax) % 2))
        + element(8, 0x1115, b"SQ", item + end, 0xFFFFFFFF)
        + element(8, 0x1140, b"SQ", item)
        + element(0x20, 0xE, b"UI", series.ljust(8, b"\0"))
        + bytes(64 + more)
    )


@pytest.mark.parametrize("explicit", [True, False])
def test_a_dicom_series_is_one_slide(tmp_path, explicit):
    """Named by its largest file, level 0; in a folder of its own by that."""
    slides = tmp_path / "slides"
    for name, series, more in (
        ("a", b"1.2.3", 0),
        ("b", b"1.2.3", 900),
        ("c", b"1.2.4", 0),
        ("own/d", b"1.2.5", 5),
        ("own/e", b"1.2.5", 0),
        ("two/f", b"1.2.6", 0),
        ("two/g", b"1.2.7", 0),
    ):
        dicom(slides / f"{name}.dcm", series, explicit, more)
    found = {name: path.name for name, path in find_slides(tmp_path).items()}
    assert found == {"b": "b.dcm", "c": "c.dcm", "own": "d.dcm", "f": "f.dcm", "g": "g.dcm"}
    before = fingerprint(slides / "b.dcm")
    dicom(slides / "c.dcm", b"1.2.4", explicit, 7)
    assert fingerprint(slides / "b.dcm") == before
    dicom(slides / "a.dcm", b"1.2.3", explicit, 7)
    assert fingerprint(slides / "b.dcm") != before


def test_files_that_a_slide_names_are_no_slides(tmp_path):
    """Of Hamamatsu's .vms and of .mrxs; a change of one is a change of the slide."""
    for name in ("v-0.jpg", "v-1.jpg", "other.jpg"):
        Image.fromarray(GREY[:9, :9]).save(tmp_path / name)
    (tmp_path / "v.vms").write_text("[x]\nImageFile=v-0.jpg\nImageFile(1,0)=v-1.jpg\nMapFile=\n")
    (tmp_path / "m.mrxs").write_bytes(b"label")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "Data0000.dat").write_bytes(b"1" * 99)
    assert set(find_slides(tmp_path)) == {"m", "other", "v"}
    before = [fingerprint(tmp_path / name) for name in ("v.vms", "m.mrxs", "other.jpg")]
    (tmp_path / "m" / "Data0000.dat").write_bytes(b"2" * 99)
    Image.fromarray(GREY[:8, :8]).save(tmp_path / "v-1.jpg")
    after = [fingerprint(tmp_path / name) for name in ("v.vms", "m.mrxs", "other.jpg")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


SMALL, TILED = GREY[:200, :200], {"tile": (256, 256), "compression": "zlib"}


@pytest.mark.parametrize(
    "pages, said",
    [
        (
            [(SMALL, {}), (GREY, {})],
            "1 of 2 pages passed over .200 x 200 px., read is .* 900 x 900",
        ),
        ([(GREY, TILED), (SMALL, {})], "1 of 2 pages passed over .200 x 200 px."),
        ([(GREY, TILED), (GREY, TILED)], "1 of 2 pages passed over .900 x 900 px."),
        ([(GREY, TILED), (SMALL, TILED | {"subfiletype": 1})], ""),
        ([(GREY.astype(np.uint16) * 257, TILED)], "of 16 bits a channel the upper 8 are read"),
    ],
    ids=["thumbnail first", "label", "stack", "pyramid", "16 bits"],
)
@pytest.mark.parametrize("big", [False, True])
def test_the_largest_page_is_read_and_the_others_are_named(tmp_path, pages, said, big):
    """tifffile writes the pages."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=big) as t:
        for picture, more in pages:
            t.write(picture, photometric="rgb", metadata=None, **more)
    slide = open_slide(path)
    assert slide.dimensions == (900, 900)
    assert np.all(np.asarray(slide.read_region((0, 0), 0, (900, 900)))[:, :, :3] == 150)
    assert re.fullmatch(f"{said}.*", passed_over(path))
    assert bool(passed_over(path)) == bool(said)


def test_pages_that_cannot_be_read_are_refused(tmp_path):
    """A larger page behind a tiled thumbnail; one that was not written; pixels that are no RGB."""
    for name, first in (("tiled", TILED), ("cut", {}), ("strips", {})):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as t:
            t.write(SMALL, photometric="rgb", metadata=None, **first)
            t.write(GREY, photometric="rgb", metadata=None, **(TILED if name == "strips" else {}))
    cut = tmp_path / "cut.tif"
    with tifffile.TiffFile(cut) as t:
        second = t.pages[1].offset
    cut.write_bytes(cut.read_bytes()[:second])
    Image.fromarray(GREY).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(GREY[:, :, 0].astype(np.uint16)).save(tmp_path / "deep.png")
    larger = "page 2 of 2, 900 x 900 px, is larger than the first, 200 x 200"
    why = {"tiled.tif": larger, "strips.tif": larger, "cut.tif": "page 2 is not in the file"}
    why |= {"cmyk.jpg": "its pixels are CMYK, not 8-bit RGB", "deep.png": "its pixels are I;16"}
    for name, words in why.items():
        with pytest.raises(InputError, match=words):
            open_slide(tmp_path / name)


# ----- Real slides -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_real_slides_cut_and_flipped(tmp_path, capsys):
    """A few of the 20 places to cut and 200 to flip that were tried by hand: each is read as it is,
    or has a reason.
    """
    rng = np.random.default_rng(0)
    (tmp_path / "slides").mkdir()
    for path in sorted(real("slides").iterdir()):
        data = path.read_bytes()
        for i in range(2):
            cut = tmp_path / "slides" / f"cut{i}-{path.name}"
            cut.write_bytes(data[: int(len(data) * rng.random())])
        for i in range(3):  # anywhere, then where the directories lie
            at = int(rng.integers(2048 if i else len(data))) * (-1) ** i
            flipped = bytearray(data)
            flipped[at] ^= int(rng.integers(1, 256))
            (tmp_path / "slides" / f"flip{i}-{path.name}").write_bytes(flipped)
    tiny_encoder(tmp_path / "tiny.pt")
    encoder = ("--device", "cpu", "--encoder", str(tmp_path / "tiny.pt"))
    status = main(["features", str(tmp_path), "--mpp", ".25", "--workers", "2", *encoder])
    failed = re.findall("^failed: ([^:]*): .{10}", capsys.readouterr().err, re.M)
    done = {path.stem for path in (tmp_path / "features").rglob("*.npy")}
    assert status == (1 if failed else 0)
    assert sorted([*failed, *done]) == sorted(p.stem for p in (tmp_path / "slides").iterdir())


@pytest.mark.parametrize("x, y, w, h", [(900, 1200, 1200, 1200), (1200, 1000, 2400, 1800)])
def test_a_crop_from_within_the_tissue_is_tissue(x, y, w, h):
    """No glass is to be seen: what is palest in it must not be taken for glass."""
    slide = open_slide(real("slides", "tcga-cr-7395-01a-01-ts1.svs"))
    crop = slide.read_region((x, y), 0, (w, h)).convert("RGB")
    small = crop.resize((w // 32, h // 32), Image.Resampling.BOX)
    assert tiling.tissue_mask(np.asarray(small)).mean() > 0.95


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("B4_r43", 0.18, 0.45),
        ("C2_r20", 0.45, 0.70),
        ("B4_r23", 0.45, 0.70),
        ("C2_r32", 0.75, 1),
        ("C2_r21", 0.85, 1),
    ],
)
def test_real_regions_with_tinted_glass(name, low, high):
    """her2st: pink glass, coarser than 0.5 µm/px; the share of tissue by eye."""
    slide = open_slide(real("her2st", "slides", f"{name}.tif"))
    mpp, _ = slide_mpp(slide, None, name)
    assert low < tiling.tissue_mask(*tiling.thumbnail(slide, mpp)).mean() < high


def test_macenko_brings_real_slides_together():
    """The hues of stained pixels of three slides scatter half as much or less."""
    seen, normal = [], []
    for path in (
        real("slides", "CMU-1-Small-Region.svs"),
        real("her2st", "slides", "B4_r10.tif"),
        real("her2st", "slides", "C2_r11.tif"),
    ):
        slide = open_slide(path)
        mpp, _ = slide_mpp(slide, 0.5, path.stem)
        rule = {"tile_um": 128.0, "mpp": mpp, "min_tissue": 0.5, "max_tiles": 8000, "seed": 0}
        arrays, _ = find_tiles(path, path.stem, rule)
        tile, coords = arrays["tile"], arrays["coords"]
        stains, top = tiling.slide_stains(slide, coords, tile, 256, 0)
        assert stains[0, 0] > stains[1, 0]  # red is haematoxylin's
        assert (stains > 0.05).all()
        assert 15 < degrees_between(*stains[:, None])[0] < 45
        tiles = tiling.read_tiles(slide, coords[::3], tile, 256)
        out, changed = tiling.macenko(tiles, (stains, top))
        assert changed.all()
        assert 80 < out.mean() < 230
        after = tiling.optical_density(out[:, ::4, ::4].reshape(-1, 3))
        found, _ = tiling.macenko_stains(after)
        assert degrees_between(found, np.array(tiling.REFERENCE)).max() < 4
        stained = tiles.max(-1) < 200
        for hues, pixels in ((seen, tiles), (normal, out)):
            dark = pixels[stained].astype(float)
            hues.append(dark.mean(0) / dark.mean())
    assert np.std(normal, 0).mean() < 0.5 * np.std(seen, 0).mean()
