"""The slide files of a cohort: which there are, opening them, how large their pixels are."""

import re
import warnings
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, ImageOps

from lab.files import InputError, few, number
from lab.headers import LISTS, listed, series_of, tiff_pages
from lab.words import LONGEST, fits, tidy

SCANS = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm")  # [ours]
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # may be one that only Pillow reads  [ours]
SLIDE_ENDINGS = SCANS + PICTURES
GDC_FOLDER = "-".join("?" * n for n in (8, 4, 4, 4, 12))  # gdc-client names it by a file's id
MPP_RANGE = (0.05, 20.0)  # µm per pixel that a microscope slide can have  [ours]
MPP_ROUNDED = 0.03  # two values that differ by less are one, rounded  [ours]
NOT_SQUARE = 1.05  # the longer side of a pixel by the shorter  [ours]
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "YCbCr")  # of Pillow
GREY_MODES = ("1", "L", "LA")  # which are read, and hold no tissue
RESERVED = re.compile(  # names of files beside those of the slides  [ours]
    r"settings|failed(-\d+-of-\d+)?(\.csv)?|summary\.md|.*\.obs", re.IGNORECASE
)
ORIENTATION, TILE_WIDTH = 274, 322  # numbers of tags  [TIFF 6.0]

Image.MAX_IMAGE_PIXELS = 2**29  # Pillow refuses twice as many: it holds them whole, 4 GiB  [ours]
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # of tags only OpenSlide reads


def can_be_named(slide):
    """Whether files here can have a slide's name."""
    return fits(slide) and not RESERVED.fullmatch(slide)


def too_long(slide):
    """Whether a name leaves no room for what the files beside a slide's have in theirs."""
    return len(slide.encode()) > LONGEST


def unnameable(slide):
    """Why files here can't have a slide's name, "" where they can."""
    if can_be_named(slide):
        return ""
    return (
        f"slide {slide[:50]} can't be the name of a file here (control characters, over {LONGEST} "
        "bytes, a dot in front, no UTF-8, or that of a file beside: settings, failed, summary.md, "
        "*.obs): rename it"
    )


def find_slides(cohort):
    """{name: path} of the slides in COHORT/slides, or in the folder itself, or of one file.

    gdc-client gives each file a folder of its own: those are looked into, and folders of .dcm.
    """
    cohort = Path(cohort)
    folder = cohort / "slides" if (cohort / "slides").is_dir() else cohort
    if not folder.exists():
        raise InputError(f"{folder}: no such folder or slide")
    files = {folder} if folder.is_file() else {*folder.glob("*"), *folder.glob(f"{GDC_FOLDER}/*")}
    files.update(folder.glob("*/*.[dD][cC][mM]"))
    found = {}
    for path, name in sorted(slides_among(files, folder), key=lambda slide: slide[0].name):
        name = tidy(name)
        if name in found:
            raise InputError(
                f"{folder}: {found[name].name} and {path.name} are both slide {name}; rename one"
            )
        found[name] = path
    return found


def slides_among(files, folder):
    """(path, name) of each slide among files of a folder; one of several files has one of them.

    Of the files of a DICOM series it is the largest, level 0. The series is named by its folder
    where that holds no other, else, as every slide, by its file. [ours]
    """
    files = [path for path in files if path.suffix.lower() in SLIDE_ENDINGS and path.is_file()]
    files = [path for path in files if not path.name.startswith(".")]
    parts = {part for path in files if path.suffix.lower() in LISTS for part in listed(path)}
    series = {}
    for path in files:
        if path.suffix.lower() == ".dcm":
            same = series.setdefault(path.parent, {}).setdefault(series_of(path) or path, [])
            same.append(path)
        elif path not in parts:
            yield path, path.stem
    for home, of_home in series.items():
        alone = len(of_home) == 1 and home != folder and not home.match(GDC_FOLDER)
        for same in of_home.values():
            level_0 = max(same, key=lambda path: (path.stat().st_size, path.name))
            yield level_0, home.name if alone else level_0.stem


def open_slide(path):
    """A slide by OpenSlide, or a plain picture by Pillow, which lies upright as its tag says."""
    try:
        slide = openslide.open_slide(str(path))
        if isinstance(slide, openslide.ImageSlide):
            return open_picture(path)
        if slide.properties["openslide.vendor"] == "generic-tiff":
            first_is_largest(tiff_pages(path))
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
    """A plain picture as a slide of one level. What is left of a cut slide is no picture.

    Of several pages it is the largest, the first of these.
    """
    with Image.open(path) as image:
        pages = tiff_pages(path)
        if len(pages) > 1:
            image.seek(largest(pages))
        tiled = TILE_WIDTH in getattr(image, "tag_v2", ())
        if tiled:
            first_is_largest(pages)
        if tiled or Path(path).suffix.lower() not in PICTURES:
            raise ValueError(
                "OpenSlide doesn't know it; of a slide that is cut off, or a .mrxs without its "
                "folder, only a picture is left"
            )
        if image.mode not in COLOUR_MODES + GREY_MODES:
            raise ValueError(
                f"its pixels are {image.mode}, not 8-bit RGB: save it as that, from the scanner's "
                "file where you have it"
            )
        return openslide.ImageSlide(ImageOps.exif_transpose(image))


def largest(pages):
    """The number of the largest page, from 0; of equal ones the first; 0 of none."""
    areas = [page.width * page.height for page in pages]
    return areas.index(max(areas)) if areas else 0


def first_is_largest(pages):
    """ValueError where OpenSlide, which begins with the first page of a TIFF, reads a small one."""
    i = largest(pages)
    if i > 0:
        page, first = pages[i], pages[0]
        raise ValueError(
            f"page {i + 1} of {len(pages)}, {page.width:,} x {page.height:,} px, is larger than "
            f"the first, {first.width:,} x {first.height:,} px, with which OpenSlide begins: save "
            "it as a file of its own"
        )


def passed_over(path):
    """What of a TIFF is not read, in words: pages that are no smaller levels, bits; "" if none."""
    if openslide.OpenSlide.detect_format(str(path)) not in (None, "generic-tiff"):
        return ""  # OpenSlide knows what each page of these is
    pages = tiff_pages(path)
    whole = [page for page in pages if not page.reduced]
    words = []
    if len(whole) > 1:
        read = whole.pop(largest(whole))
        sizes = few([f"{page.width:,} x {page.height:,}" for page in whole], 3)
        words.append(
            f"{len(whole)} of {len(pages)} pages passed over ({sizes} px), read is that of "
            f"{read.width:,} x {read.height:,}"
        )
    if any(page.bits > 8 for page in pages):
        words.append(f"of {max(page.bits for page in pages)} bits a channel the upper 8 are read")
    return "; ".join(words)


def orientation(path, formats=None):
    """How a picture lies by its tag (EXIF, TIFF), 2 to 8; 1: upright, or it doesn't say."""
    try:
        with Image.open(path, formats=formats) as image:
            tag = image.getexif().get(ORIENTATION, 1)
    except Exception:  # no file of Pillow's: it has errors of many classes
        return 1
    return tag if tag in range(2, 9) else 1


def slide_mpp(slide, given, name, force=False):
    """(µm per pixel of level 0, its source): the slide's own, else `given` (samples.csv, --mpp).

    With `force` the one given goes first. It is not guessed from the magnification: 20x is 0.5 on
    one scanner, 0.46 on another. [ours]
    """
    low, high = MPP_RANGE
    own = own_mpp(slide)
    own_can_be = all(low <= mpp <= high for mpp in own)
    given_can_be = given is not None and low <= given <= high
    factor = max(own) / min(own) if own_can_be else np.nan
    if own_can_be and factor <= NOT_SQUARE and not (force and given_can_be):
        return float(np.mean(own)), "slide"
    if given_can_be and (force or not own_can_be):
        return float(given), "given"
    if given is not None and not given_can_be:
        why = f"mpp {given:g} is outside {low}-{high} µm per pixel"
    elif own_can_be:
        why = f"its pixels are not square, {own[0]:g} x {own[1]:g} µm, a factor of {factor:.3g}"
    elif np.isnan(own).all():
        why = "no µm per pixel in the file"
    else:
        why = f"its file says {own[0]:g} and {own[1]:g} µm per pixel, which can't be"
    all_slides = "all slides" if own_can_be else "all slides without one"
    forced = " (both with --force-mpp, which takes pixels for squares)" if own_can_be else ""
    raise InputError(
        f"slide {name}: {why}; mend: an mpp column in samples.csv, --mpp for {all_slides}{forced}, "
        "or the right value in the file itself"
    )


def own_mpp(slide):
    """µm per pixel along x and y that a slide says itself, NaN where it doesn't."""
    return [number(slide.properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy"]


def two_scales(own, given):
    """Whether two values of µm per pixel are not the same one rounded. None is no value."""
    return None not in (own, given) and abs(given / own - 1) > MPP_ROUNDED


def known_mpp(path, given, name, force=False):
    """µm per pixel as slide_mpp says it of a slide file, if any; None where nobody says it."""
    try:
        return slide_mpp(open_slide(path), given, name, force)[0] if path else given
    except InputError:
        return None
