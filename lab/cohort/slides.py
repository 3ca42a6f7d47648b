"""The slide files of a cohort: which there are, opening them, how large their pixels are."""

import warnings
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, ImageOps

from lab.files import InputError, number
from lab.words import tidy

SCANS = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm")  # [ours]
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # may be one that only Pillow reads  [ours]
SLIDE_ENDINGS = SCANS + PICTURES
GDC_FOLDER = "-".join("?" * n for n in (8, 4, 4, 4, 12))  # gdc-client names it by a file's id
MPP_RANGE = (0.05, 20.0)  # µm per pixel that a microscope slide can have  [ours]
RESERVED = ("settings", "failed")  # files beside those of the slides  [ours]
ORIENTATION, TILE_WIDTH = 274, 322  # numbers of tags  [TIFF 6.0]

Image.MAX_IMAGE_PIXELS = 2**29  # Pillow refuses twice as many: it holds them whole, 4 GiB  [ours]
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # of tags only OpenSlide reads


def can_be_named(slide):
    """Whether files here can have a slide's name."""
    return slide.isprintable() and slide not in RESERVED and not too_long(slide)


def too_long(slide):
    """Whether a name leaves no room for what the files beside a slide's have in theirs."""
    return len(slide.encode()) > 200


def unnameable(slide):
    """Why files here can't have a slide's name, "" where they can."""
    if can_be_named(slide):
        return ""
    return (
        f"slide {slide[:50]} can't be the name of a file here (control characters, over 200 bytes, "
        f"or one of {', '.join(RESERVED)}): rename it"
    )


def find_slides(cohort):
    """{name: path} of the slides in COHORT/slides, or in the folder itself, or of one file.

    gdc-client gives each file a folder of its own: those are looked into.
    """
    cohort = Path(cohort)
    folder = cohort / "slides" if (cohort / "slides").is_dir() else cohort
    if not folder.exists():
        raise InputError(f"{folder}: no such folder or slide")
    files = [folder] if folder.is_file() else [*folder.glob("*"), *folder.glob(f"{GDC_FOLDER}/*")]
    found = {}
    for path in sorted(files, key=lambda path: path.name):
        is_slide = path.suffix.lower() in SLIDE_ENDINGS and not path.name.startswith(".")
        if not is_slide or not path.is_file():
            continue
        name = tidy(path.stem)
        if name in found:
            raise InputError(
                f"{folder}: {found[name].name} and {path.name} are both slide {name}; rename one"
            )
        found[name] = path
    return found


def open_slide(path):
    """A slide by OpenSlide, or a plain picture by Pillow, which lies upright as its tag says."""
    try:
        slide = openslide.open_slide(str(path))
        if isinstance(slide, openslide.ImageSlide):
            return open_picture(path)
        turned = orientation(path, ["TIFF"])  # of others Pillow may see the label
    except Exception as e:  # OpenSlide, Pillow and the file system each have their own errors
        raise InputError(f"{path}: not a readable slide ({e or type(e).__name__})") from None
    if turned > 1:
        raise InputError(
            f"{path}: its orientation tag is {turned}, with which OpenSlide turns each of its "
            "tiles by itself: save the picture upright, with the tag 1"
        )
    return slide


def open_picture(path):
    """A plain picture as a slide of one level. What is left of a cut slide is no picture."""
    with Image.open(path) as image:
        tiled = TILE_WIDTH in getattr(image, "tag_v2", ())
        if tiled or Path(path).suffix.lower() not in PICTURES:
            raise ValueError(
                "OpenSlide doesn't know it; of a slide that is cut off, or a .mrxs without its "
                "folder, only a picture is left"
            )
        return openslide.ImageSlide(ImageOps.exif_transpose(image))


def orientation(path, formats=None):
    """How a picture lies by its tag (EXIF, TIFF), 2 to 8; 1: upright, or it doesn't say."""
    try:
        with Image.open(path, formats=formats) as image:
            tag = image.getexif().get(ORIENTATION, 1)
    except Exception:  # no file of Pillow's: it has errors of many classes
        return 1
    return tag if tag in range(2, 9) else 1


def slide_mpp(slide, given, name):
    """(µm per pixel of level 0, its source): the slide's own, else `given` (samples.csv, --mpp).

    It is not guessed from the magnification: 20x is 0.5 on one scanner, 0.46 on another. [ours]
    """
    low, high = MPP_RANGE
    own = [number(slide.properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy"]
    if all(low <= mpp <= high for mpp in own) and max(own) <= 1.05 * min(own):
        return float(np.mean(own)), "slide"
    if given is not None and low <= given <= high:
        return float(given), "given"
    if given is not None:
        why = f"mpp {given:g} is outside {low}-{high} µm per pixel"
    elif np.isnan(own).all():
        why = "no µm per pixel in the file"
    else:
        why = f"its file says {own[0]:g} and {own[1]:g} µm per pixel, which can't be"
    raise InputError(
        f"slide {name}: {why}; mend: an mpp column in samples.csv, --mpp for all slides without "
        "one, or the right value in the file itself"
    )


def known_mpp(path, given, name):
    """µm per pixel as slide_mpp says it of a slide file, if any; None where nobody says it."""
    try:
        return slide_mpp(open_slide(path), given, name)[0] if path else given
    except InputError:
        return None
