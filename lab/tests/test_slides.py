"""lab.tests.test_slides"""

import re

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

import tiling
from lab.cohort.slides import open_slide, slide_mpp
from lab.cohort.steps import find_tiles, tiles_of
from lab.commands.tiling import main
from lab.files import InputError
from lab.tests.helpers import degrees_between, painted, real, swap


def test_a_crop_from_within_the_tissue_is_tissue():
    """No glass to be seen: what is palest in it must not be taken for glass."""
    slide = open_slide(real("slides", "tcga-cr-7395-01a-01-ts1.svs"))
    for x, y, w, h in ((900, 1200, 1200, 1200), (1200, 1000, 2400, 1800)):
        crop = (
            slide.read_region((x, y), 0, (w, h))
            .convert("RGB")
            .resize((w // 32, h // 32), Image.Resampling.BOX)
        )
        assert tiling.tissue_mask(np.asarray(crop)).mean() > 0.95


def test_thumbnail_in_strips_equals_at_once(smooth_slide, monkeypatch):
    slide = open_slide(smooth_slide[0])
    at_once, opaque = tiling.thumbnail(slide, 0.25)
    swap(monkeypatch, "tiling", "STRIP_PIXELS", 3000)
    strips, _ = tiling.thumbnail(slide, 0.25)
    assert (
        at_once.shape == (47, 56, 3)
        and opaque.all()
        and np.abs(at_once.astype(int) - strips).max() <= 1
    )
    want = np.asarray(Image.fromarray(smooth_slide[1]).resize((56, 47), Image.Resampling.BOX))
    assert np.abs(at_once.astype(int) - want).mean() < 1.5


class FakeSlide:
    def __init__(self, **properties):
        self.properties = {"openslide." + k.replace("_", "-"): v for k, v in properties.items()}


def test_mpp_comes_from_the_slide_then_the_table_then_the_option():
    assert slide_mpp(FakeSlide(mpp_x="0.25", mpp_y="0.252"), 0.5, "a") == (
        pytest.approx(0.251),
        "slide",
    )
    assert slide_mpp(FakeSlide(), 0.5, "a") == (0.5, "given")
    assert slide_mpp(FakeSlide(mpp_x="1000", mpp_y="1000"), 0.5, "a") == (
        0.5,
        "given",
    )  # the mend works
    for slide, given in (
        (FakeSlide(), None),
        (FakeSlide(mpp_x="0", mpp_y="0"), None),
        (FakeSlide(mpp_x="nan", mpp_y="nan"), None),
        (FakeSlide(mpp_x="0.25", mpp_y="0.5"), None),
        (FakeSlide(), 50.0),
        (FakeSlide(), float("nan")),
        (FakeSlide(mpp_x="0.25"), None),
        (FakeSlide(mpp_x="1e9", mpp_y="1e9"), None),
    ):
        with pytest.raises(InputError, match=r"slide a: .*samples.csv, --mpp .*file itself"):
            slide_mpp(slide, given, "a")


def test_what_is_left_of_a_slide_is_no_picture_of_it(tmp_path):
    """Pillow opens the first page of a real .svs or tiled .tif that is cut off behind it, and the label that a .mrxs is: all refused."""
    whole = real("slides", "CMU-1-Small-Region.svs").read_bytes()
    for name in ("a.svs", "a.tif"):
        (tmp_path / name).write_bytes(whole[: int(0.75 * len(whole))])
    Image.fromarray(np.full((900, 900, 3), 150, np.uint8)).save(tmp_path / "a.mrxs", "JPEG")
    for path in sorted(tmp_path.iterdir()):
        assert Image.open(path).size[0] >= 900
        with pytest.raises(
            InputError, match=f"{path.name}: not a readable slide .OpenSlide doesn't know it"
        ):
            open_slide(path)


def test_pictures_lie_as_their_tag_says(tmp_path, capsys):
    """EXIF of a .jpg and the tag of an untiled TIFF are followed, as Pillow does; a tiled TIFF, whose tiles OpenSlide would turn one by one, is refused."""
    rgb = np.array(Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST))
    (tmp_path / "slides").mkdir()
    path = lambda name: tmp_path / "slides" / name
    exif = Image.Exif()
    exif[274] = 6
    (
        Image.fromarray(rgb).save(path("upright.jpg"), quality=95),
        Image.fromarray(np.rot90(rgb)).save(path("turned.jpg"), quality=95, exif=exif),
    )
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (
        Image.fromarray(rgb).save(path("profile.png"), icc_profile=profile),
        Image.fromarray(rgb).save(path("broken.png"), icc_profile=b"no profile"),
    )
    Image.fromarray(rgb).save(path("plain.png"))
    for name, tag, tile in (
        ("strips.tif", 6, None),
        ("tiled.tif", 6, (256, 256)),
        ("right.tif", 1, (256, 256)),
    ):
        tifffile.imwrite(
            path(name),
            np.rot90(rgb) if tag == 6 else rgb,
            photometric="rgb",
            tile=tile,
            extratags=[(274, 3, 1, tag, True)],
            metadata=None,
        )
    Image.new("1", (16000, 12000)).save(
        tmp_path / "large.png"
    )  # more pixels than Pillow opens unasked
    assert open_slide(tmp_path / "large.png").dimensions == (16000, 12000)
    assert main(["doctor", str(tmp_path), "--mpp", "0.5"]) == 1
    said = capsys.readouterr()
    assert (
        "tiled: " in said.err
        and "its orientation tag is 6, with which OpenSlide turns each of its tiles by itself"
        in said.err
    )
    assert "1 of 8 slides failed" in said.err
    blocks = {text.split(":")[0]: text for text in re.split(r"\n(?! )", said.out)}
    for name in ("upright", "turned", "profile", "broken", "plain", "strips", "right"):
        assert ("turned upright: its orientation tag is 6" in blocks[name]) == (
            name in ("turned", "strips")
        ) and "1,600 x 1,280 px" in blocks[name]
        assert ("ICC profile present: not applied" in blocks[name]) == (
            name in ("profile", "broken")
        )
    assert main(["tiles", str(tmp_path), "--mpp", "0.5"]) == 1
    coords = {
        p.stem: tiles_of(tmp_path, p.stem)[0]["coords"] for p in (tmp_path / "tiles").glob("*.npz")
    }
    assert len(coords) == 7 and all(np.array_equal(c, coords["plain"]) for c in coords.values())
    got = [
        tiling.read_tiles(open_slide(path(name)), coords["plain"][:1], 224)
        for name in ("plain.png", "profile.png", "right.tif", "strips.tif", "turned.jpg")
    ]
    assert (
        all(np.array_equal(g, got[0]) for g in got[:4])
        and np.abs(got[4].astype(int) - got[0]).mean() < 4
    )


def test_real_regions_with_tinted_glass(capsys):
    """her2st: pink glass, coarser than 0.5 µm/px; the share of tissue by eye on four regions."""
    for name, low, high in (
        ("B4_r43", 0.18, 0.45),
        ("C2_r20", 0.45, 0.70),
        ("B4_r23", 0.45, 0.70),
        ("C2_r32", 0.75, 1),
        ("C2_r21", 0.85, 1),
    ):
        slide = open_slide(real("her2st", "slides", f"{name}.tif"))
        assert (
            low
            < tiling.tissue_mask(*tiling.thumbnail(slide, slide_mpp(slide, None, name)[0])).mean()
            < high
        )


def test_macenko_brings_real_slides_together():
    looks, seen = [], []
    for path in (
        real("slides", "CMU-1-Small-Region.svs"),
        real("her2st", "slides", "B4_r10.tif"),
        real("her2st", "slides", "C2_r11.tif"),
    ):
        slide = open_slide(path)
        mpp, _ = slide_mpp(slide, 0.5, path.stem)
        arrays, _ = find_tiles(
            path, path.stem, dict(tile_um=128.0, mpp=mpp, min_tissue=0.5, max_tiles=8000, seed=0)
        )
        tile, coords = float(arrays["tile"]), arrays["coords"]
        stains, top = tiling.slide_stains(slide, coords, tile, 256, 0)
        assert (
            stains[0, 0] > stains[1, 0]
            and (stains > 0.05).all()
            and 15 < degrees_between(*stains[:, None])[0] < 45
        )  # red is haematoxylin's
        tiles = np.concatenate(
            [
                tiling.read_tiles(slide, coords[i : i + 1], tile, 256)
                for i in range(0, len(coords), 3)
            ]
        )
        out, changed = tiling.macenko(tiles, (stains, top))
        assert changed.all() and 80 < out.mean() < 230
        after = tiling.macenko_stains(tiling.optical_density(out[:, ::4, ::4].reshape(-1, 3)))
        assert degrees_between(after[0], np.array(tiling.REFERENCE)).max() < 4
        for kept, x in ((seen, tiles), (looks, out)):
            dark = x.reshape(-1, 3)[(tiles.reshape(-1, 3).max(1) < 200)]
            kept.append(dark.astype(float).mean(0) / dark.mean())  # hue of the stained pixels
    spread = [np.std(kept, 0).mean() for kept in (seen, looks)]
    assert spread[1] < 0.5 * spread[0]
