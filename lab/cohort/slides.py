"""lab.cohort.slides"""

import warnings
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, ImageOps

from lab.files import InputError

MPP_RANGE = (
    0.05,
    20.0,
)  # µm per pixel that a microscope slide can have                              [ours]


GDC_FOLDER = "-".join(
    "?" * n for n in (8, 4, 4, 4, 12)
)  # a file id of the GDC                           [ours]


SLIDE_ENDINGS = (
    ".svs .tif .tiff .ndpi .mrxs .scn .vms .vmu .bif .svslide .dcm .png .jpg .jpeg".split()
)  # [ours]


PLAIN = (
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
)  # what may be a picture that only Pillow reads        [ours]


ORIENTATION, TILE_WIDTH = 274, 322  # numbers of the tags           [TIFF 6.0]


Image.MAX_IMAGE_PIXELS = (
    2**29
)  # Pillow, which holds a plain picture whole, refuses twice as many: 4 GiB [ours]


warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  #   [ours]


warnings.filterwarnings(
    "ignore", module=r"PIL\.TiffImagePlugin"
)  # of tags that only OpenSlide reads     [ours]


RESERVED = (
    "settings",
    "failed",
)  # files beside those of the slides, so no slide's name                [ours]


def can_be_named(slide):
    """Whether files here can have a slide's name."""
    return slide.isprintable() and len(slide.encode()) <= 200 and slide not in RESERVED


def find_slides(cohort):
    """{slide id: path} of COHORT/slides, or of the folder itself, or of one slide file. gdc-client gives each file a folder
    of its own, named by its id: those are looked into."""
    cohort = Path(cohort)
    folder = cohort / "slides" if (cohort / "slides").is_dir() else cohort
    if not folder.exists():
        raise InputError(f"{folder}: no such folder or slide")
    files = (
        [cohort]
        if cohort.is_file()
        else sorted(
            (
                p
                for pattern in ("*", f"{GDC_FOLDER}/*")
                for p in folder.glob(pattern)
                if p.is_file()
            ),
            key=lambda p: p.name,
        )
    )
    found = {}
    for p in files:
        if p.suffix.lower() in SLIDE_ENDINGS and not p.name.startswith("."):
            if p.stem in found:
                raise InputError(
                    f"{folder}: {found[p.stem].name} and {p.name} are both slide {p.stem}; rename one"
                )
            found[p.stem] = p
    return found


# Slide
def orientation(path, formats=None):
    """How a file's tag (EXIF, TIFF) says that its picture lies, 2 to 8; 1: upright, nothing said, or of no such format."""
    try:
        with Image.open(path, formats=formats) as image:
            tag = image.getexif().get(ORIENTATION, 1)
    except Exception:  # no file of Pillow's: it has errors of many classes
        return 1
    return tag if tag in range(2, 9) else 1


def open_slide(path):
    """The slide, by OpenSlide (plain images by Pillow, upright as their tag says). Raises InputError with the file's name
    when it can't be read."""
    try:
        slide = openslide.open_slide(str(path))
        plain = isinstance(slide, openslide.ImageSlide)
        turned = orientation(path, None if plain else ["TIFF"])  # a .mrxs is the JPEG of its label
        if plain:
            with Image.open(path) as image:
                if Path(path).suffix.lower() not in PLAIN or TILE_WIDTH in getattr(
                    image, "tag_v2", ()
                ):
                    raise ValueError(
                        "OpenSlide doesn't know it; of a slide that is cut off, or a .mrxs without its folder, "
                        "only a picture is left"
                    )
                slide = (
                    openslide.ImageSlide(ImageOps.exif_transpose(image)) if turned > 1 else slide
                )
    except Exception as e:  # OpenSlide, Pillow and the file system each have their own errors
        raise InputError(f"{path}: not a readable slide ({e or type(e).__name__})") from None
    if turned > 1 and not plain:
        raise InputError(
            f"{path}: its orientation tag is {turned}, with which OpenSlide turns each of its tiles by itself: "
            "save the picture upright, with the tag 1"
        )
    return slide


def slide_mpp(slide, given, name):
    """(µm per pixel at level 0, its source): the slide's own properties, else `given` (samples.csv or --mpp).

    There is no guess from the magnification: 20x is 0.5 on one scanner and 0.46 on another. [ours]
    """
    mends = "an mpp column in samples.csv, --mpp for all slides without one, or the right value in the file itself"
    own = []
    for axis in "xy":
        try:
            own.append(float(slide.properties.get(f"openslide.mpp-{axis}", "")))
        except ValueError:
            pass
    sane = [m for m in own if MPP_RANGE[0] <= m <= MPP_RANGE[1]]
    if len(sane) == 2 and max(sane) <= 1.05 * min(sane):
        return float(np.mean(sane)), "slide"
    if given is not None:
        if not MPP_RANGE[0] <= given <= MPP_RANGE[1]:
            raise InputError(
                f"slide {name}: mpp {given:g} is outside {MPP_RANGE[0]}-{MPP_RANGE[1]} µm per pixel; "
                f"mend: {mends}"
            )
        return float(given), "given"
    if own:
        raise InputError(
            f"slide {name}: its file says {' and '.join(f'{m:g}' for m in own)} µm per pixel, which can't "
            f"be (one value per axis, equal, {MPP_RANGE[0]}-{MPP_RANGE[1]}); mend: {mends}"
        )
    power = slide.properties.get("openslide.objective-power")
    raise InputError(
        f"slide {name}: no µm per pixel in the file{f' (objective {power}x)' if power else ''}; mend: {mends}"
    )


def has_profile(slide):
    """Whether a slide has an ICC profile, which read_region never applies, so that no result depends on it."""
    try:
        return slide.color_profile is not None
    except Exception:  # a broken one: Pillow's own error
        return True
