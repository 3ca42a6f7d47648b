"""Where tiles made elsewhere lie and how large they are: as their file says, else by their grid.

said: a dict of a file's attributes. TRIDENT, CLAM and STAMP each say it in their own way.
"""

import unicodedata

import numpy as np

from lab.cohort.slides import MPP_RANGE
from lab.files import InputError
from lab.space import ROUNDED, pitch

NAMES = ("features", "feats")  # of the data set: CLAM's and TRIDENT's, STAMP's
ALIKE = 0.02  # relative: sizes that differ by less are the same  [ours]
MICRONS = ("um", "μm", "micron", "micrometer", "micrometre")
UNITS = {**dict.fromkeys(MICRONS, 1.0), "mm": 1000.0}  # µm in a unit of coordinates
PIXELS = ("px", "pixel", "level0", "level 0", "level-0 pixel", "level 0 pixel", "level0 pixel")
STAMP_1 = 224, 256 / 224  # STAMP 1 has tiles of 224 px of this many µm, and says no unit
NOMINAL_UM = 10.0  # µm per pixel at a magnification of 1, as TRIDENT counts
ENCODER = ("encoder", "extractor", "patch_encoder", "model_name", "model")  # names of attributes
SIZES = ("µm of a tile", "level-0 pixels of a tile")
SPEAK_OF_TILES = {  # attributes on the size of tiles, which `attributes_of` says anew
    *("patch_size", "patch_level", "patch_size_level0", "patch_size_lv0", "downsample"),
    *("custom_downsample", "level0_magnification", "target_magnification", "overlap", "unit"),
    *("coords_unit", "units", "tile_size", "tile_size_um", "tile_size_px", "mpp"),
}
MAGNIFICATIONS = 80, 60, 40, 20, 10, 5  # TRIDENT's
LEVEL0 = ("patch_size_level0", "patch_size_lv0")  # names of an edge in level-0 pixels


def place(said, coords, mpp=None, asked=None):
    """(coords (n, 2), edge), both in level-0 pixels, and sentences on what is unusual.

    mpp: µm per pixel of the slide, None where nobody knows; asked: an edge in level-0 pixels, for
    files that don't say. InputError where the file contradicts itself, the slide or what is asked.
    """
    unusual = []
    if data_set(said) == NAMES[1]:
        unusual.append(f"its features are called `{NAMES[1]}`, as STAMP's")
    um, mpp = unit_said(said, coords), slide_scale(said, mpp)
    if um and not mpp:
        raise InputError(
            "its coords are µm, and nothing says how many µm a pixel of the slide is: mend: an mpp "
            "column in samples.csv, or --mpp, or the slide's own file"
        )
    if um:
        coords = np.rint(coords * (um / mpp)).astype(np.int64)
        unusual.append(f"its coords are µm: {mpp:g} µm are a level-0 pixel")
    edge, step = edge_said(said, mpp), pitch(coords)
    if edge and asked and not alike(edge, asked):
        raise InputError(
            f"it says {edge:g} level-0 pixels for a tile, which is not {asked:g}: leave --tile-um "
            "out"
        )
    edge = edge or asked
    if edge is None and step is None:
        raise InputError(
            f"nothing says how large its tiles are, and its {len(coords):,} lie on no grid: give "
            "--tile-um"
        )
    if edge is None:
        unusual.append(
            f"nothing says how large its tiles are: taken to be {step:g} level-0 pixels, the pitch "
            "of their grid; --tile-um says otherwise"
        )
    else:
        unusual += apart(said, edge, step, um and um / mpp)
    return coords, edge or step, unusual


def apart(said, edge, step, scale):
    """[A sentence] where tiles overlap or leave gaps; InputError where the file can't mean that.

    scale: level-0 pixels in a unit of the coordinates, where that is not the pixel.
    """
    if step is None or abs(step - edge) <= max(ROUNDED, ALIKE * edge):
        return []
    where = f"its tiles of {edge:g} level-0 pixels lie {step:g} apart"
    px = number_said(said, "tile_size_px") or edge
    if scale and (alike(step / scale, px) or alike(step / scale, edge)):
        raise InputError(
            f"it says that its coords are µm, but as µm {where}; as pixels they would fit: mend "
            "its attribute `unit`"
        )
    if step > edge:
        return [f"{where}: there are gaps, or the size is not theirs"]
    if "overlap" in said and not number_said(said, "overlap"):
        raise InputError(f"it says that no tiles overlap, but {where}: coords of another level?")
    return [f"{where}: they overlap, and a cell counts in every tile that holds it"]


def kind_said(said, coords, mpp=None, asked_um=None):
    """{what: value} that all features of a cohort must have alike, as far as a slide's file says.

    A size is in µm where that is known, if only by a magnification; else in level-0 pixels. "no
    map": why its tiles have no place on the slide.
    """
    kind = {"encoder": word_said(said, *ENCODER), "name of their data set": data_set(said)}
    if coords is not None and (coords.shape[1:] != (2,) or not np.isfinite(coords).all()):
        coords = None  # the slide fails, with a reason
    um, target = tile_um(said), number_said(said, "target_magnification")
    if target and not um:
        um = number_said(said, "patch_size") * NOMINAL_UM / target
    edge = None
    try:
        unit = unit_said(said, coords)
        mpp = slide_scale(said, mpp)
        if coords is not None and (mpp or not unit):
            edge = place(said, coords, mpp, asked_um and mpp and asked_um / mpp)[1]
    except InputError as e:
        return kind | {"no map": str(e)}
    um = um or (edge and mpp and edge * mpp)
    size = (SIZES[0], um) if um else (SIZES[1], edge)
    unit = f"{unit:g} µm" if unit else "px"
    return kind | {"unit of coords": unit, size[0]: size[1] and float(f"{size[1]:.4g}")}


# ----- What we say --------------------------------------------------------------------------------


def attributes_of(tiles, overlap=0, size=None):
    """What CLAM and TRIDENT want said of a slide's coordinates: both find the same tissue by it.

    They count in whole pixels, so that all is said of level 0. Who reads a tile there scales it as
    its encoder wants. tiles: name, edge and mpp (or None); size: of the slide, where it is there.
    """
    edge = max(1, round(tiles.edge))
    said = {
        "name": tiles.name,
        "unit": "px",
        "patch_level": 0,
        "patch_size": edge,
        "patch_size_level0": edge,
        "downsample": (1.0, 1.0),
        "overlap": overlap,
    }
    if size:
        said["level0_width"], said["level0_height"] = size
    if tiles.mpp:
        power = NOMINAL_UM / tiles.mpp
        power = min(MAGNIFICATIONS, key=lambda usual: max(power / usual, usual / power))
        said |= {"mpp": tiles.mpp, "level0_magnification": power, "target_magnification": power}
    if tiles.mpp and alike(edge, tiles.edge):
        said["tile_size_um"] = tiles.edge * tiles.mpp
    return said


def overlap_of(said, edge):
    """The overlap that a file says, in whole pixels of level 0, of tiles of that edge."""
    px = number_said(said, "patch_size")
    return round(number_said(said, "overlap") * (edge / px if px else 1))


# ----- What the attributes say --------------------------------------------------------------------


def unit_said(said, coords):
    """µm in a unit of the coordinates, None where that is the level-0 pixel."""
    text, word = unit_word(said)
    if text:
        if word not in (*UNITS, *PIXELS):
            raise InputError(f"the unit of its coords is {text!r}; known are um, mm and px")
        return UNITS.get(word)
    if coords is None or edge_said(said):
        return None
    um = number_said(said, "tile_size_um")
    if not um and not ("extractor" in said and data_set(said) == NAMES[1]):
        return None
    step = pitch(coords)
    if um and not (step and alike(step, um)):
        raise InputError(
            f"it has tiles of {um:g} µm (tile_size_um) and doesn't say whether its coords are µm "
            "or pixels: give it the attribute `unit`, um or px"
        )
    if um:
        return 1.0
    px, unit = STAMP_1
    return unit if step and round(step) == px else None


def unit_word(said):
    """The unit of coordinates as the file says it, and as UNITS and PIXELS spell it."""
    text = word_said(said, "unit", "coords_unit", "units")
    return text, unicodedata.normalize("NFKC", text).lower().removesuffix("s")


def slide_scale(said, mpp):
    """µm per level-0 pixel, the slide's or the file's `mpp`; InputError where they contradict.

    Some write the µm per pixel of a tile there, which may be read from a lower level.
    """
    own, (low, high) = number_said(said, "mpp"), MPP_RANGE
    if not all(low <= value <= high for value in (own, mpp) if value):
        raise InputError(f"µm per pixel of {own or mpp:g} can't be: {low:g} to {high:g} can")
    if not own or not mpp or alike(own, mpp):
        return mpp or own or None
    um, px = tile_um(said, mpp), number_said(said, "tile_size_px", "patch_size")
    if um and px and alike(um / px, own):
        return mpp
    raise InputError(f"it says {own:g} µm per pixel (mpp), its slide or --mpp {mpp:g}")


def tile_um(said, mpp=None):
    """Edge of a tile in µm, or None: as it is said, or of its level-0 pixels."""
    um = number_said(said, "tile_size_um")
    if not um and UNITS.get(unit_word(said)[1]) == 1:
        um = number_said(said, "tile_size")
    if not um and mpp:
        um = (edge_said(said) or 0) * mpp
    return um or None


def edge_said(said, mpp=None):
    """Edge of a tile in level-0 pixels, None where it is not said; InputError where it is said in
    two ways that contradict each other.
    """
    edges = edges_said(said, mpp)
    if edges and not alike(min(edges.values()), max(edges.values())):
        each = "; ".join(f"{edge:g} by {what}" for what, edge in edges.items())
        raise InputError(f"it contradicts itself on the level-0 pixels of a tile: {each}")
    return next(iter(edges.values()), None)


def edges_said(said, mpp=None):
    """{who says it: edge of a tile in level-0 pixels}.

    By TRIDENT's patch_size_level0, by its patch_size and magnifications, by CLAM's patch_size and
    downsample, or by STAMP's µm and the slide's mpp. A patch_size with a custom_downsample says
    nothing: programs differ on whether it is in it.
    """
    edges = {LEVEL0[0]: number_said(said, *LEVEL0)}
    size, target = number_said(said, "patch_size"), number_said(said, "target_magnification")
    if target:
        ratio = number_said(said, "level0_magnification") / target
        edges["patch_size and magnifications"] = size * ratio
    if number_said(said, "custom_downsample") <= 1:
        edges["patch_size and downsample"] = size * number_said(said, "downsample")
        if "patch_level" in said and number_said(said, "patch_level") == 0:
            edges["patch_size at level 0"] = size
    if mpp:
        edges["tile_size_um and mpp"] = (tile_um(said) or 0) / mpp
    return {what: edge for what, edge in edges.items() if 0 < edge < np.inf}


def data_set(said):
    """The name of the data set of features, "" where there is none."""
    return next((name for name in NAMES if name in said), "")


def number_said(said, *keys):
    """The first number of the first of these attributes that has one, 0 where none has."""
    for key in keys:
        try:
            return max(0.0, float(np.ravel(said[key])[0]))
        except (KeyError, IndexError, TypeError, ValueError):
            continue
    return 0.0


def word_said(said, *keys):
    """The text of the first of these attributes that is there, "" where none is."""
    for key in keys:
        for value in np.ravel(said.get(key, ()))[:1]:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            return text.strip()
    return ""


def alike(a, b):
    return abs(a / b - 1) <= ALIKE
