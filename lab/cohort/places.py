"""Truth about places on a slide: cells in points/, spots in spots/, outlines in regions/.

Files are <slide>.csv, .tsv, .txt (also .gz) or .geojson, .json, .zip, as people write them or
QuPath exports them; the slide's name may have its ending (s0.svs.geojson). All places come out as
x, y in level-0 pixels. What is passed over is counted, and told to `say`.
"""

import os
import re
from array import array
from collections import Counter
from itertools import islice

import numpy as np

from lab.cohort.slides import SLIDE_ENDINGS, find_slides
from lab.exchange.geojson import FAR, OPEN, SHAPES, centroids, read_geojson
from lab.files import InputError, check_even, few, from_cell, numbers, one_line, read_table
from lab.progress import reading
from lab.words import composed, find_word

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")
CLASSES = ("cell", "class", "classification")  # columns that name a cell's class
EVERY = "all cells"
MOST = 2**27  # values of a table of places, or cells of a slide: a gigabyte of numbers [ours]
OUTLINES = 2**21  # of a slide  [ours]
BLOCK, SHAPES_AT_ONCE = 2**13, 2**9  # rows, shapes that are looked at together, for memory
OBJECTS = ("object type", "name")  # columns in which QuPath says what a row is
NO_CELLS = ("annotation", "tma core", "pathrootobject", "root object")  # values of these


def read_places(folder, slide, mpp, origin=(0, 0), say=print):
    """What is known of a slide: cells {class: (m, 2)} and spots ((m, 2), {column: (m,)}), or None.

    mpp and origin: QuPath's own frame, in which its exports are (`qupath_frame`).
    """
    frame = mpp, origin, say
    return read_cells(folder, slide, *frame), read_spots(folder, slide, *frame)


def read_cells(folder, slide, mpp, origin, say):
    """{class: (m, 2)} of points/<slide>, "all cells" first; None where there is no such file."""
    path = found_one(folder / "points", slide, (*TABLES, *SHAPES), say)
    if path is None:
        return None
    if path.name.lower().endswith(SHAPES):
        kinds, xy = shape_centres(path, slide, say)
        xy = xy + origin
    else:
        xy, columns = read_place_table(path, slide, mpp, origin, say)
        named = {name.lower(): texts for name, texts in columns.items()}
        kinds = next((named[c] for c in CLASSES if c in named), [""] * len(xy))
    cells = cells_by_class(kinds, xy)
    without = len(xy) - sum(map(bool, kinds))
    if 0 < without < len(xy):
        say(f"{path}: {without:,} of {len(xy):,} cells have no class, and count in {EVERY} alone")
    return cells


def read_spots(folder, slide, mpp, origin, say):
    """((m, 2), {column: (m,)}) of spots/<slide>, columns with numbers; None without such a file."""
    path = found_one(folder / "spots", slide, TABLES, say)
    if path is None:
        return None
    xy, columns = read_place_table(path, slide, mpp, origin, say, every=True)
    values = {name: v if isinstance(v, np.ndarray) else numbers(v) for name, v in columns.items()}
    return xy, {name: v for name, v in values.items() if np.isfinite(v).any()}


def found_one(folder, slide, endings, say):
    """The file of a slide with one of the endings, None where there is none; two are refused."""
    if not folder.is_dir():
        return None
    paths, others = [], []
    own = composed(slide)  # one of thousands, of which only its own are looked at
    names = [name for name in os.listdir(folder) if composed(name).startswith(own)]
    for path in map(folder.joinpath, sorted(names)):
        ending = ending_of(path.name, slide)
        if ending in endings and path.is_file():
            paths.append(path)
        elif ending and ending[0] in ". (":
            others.append(path.name)
    if len(paths) > 1:
        raise InputError(f"{folder}: {paths[0].name} and {paths[1].name} are both there; keep one")
    if others and not paths:
        say(
            f"{folder}: {few(others)} not read: of {slide} is read what is named {slide} and ends "
            f"in {', '.join(endings)}"
        )
    return paths[0] if paths else None


def ending_of(name, slide):
    """What follows a slide's name, or the name of its file, in a file's name; None if nothing."""
    name, slide = composed(name), composed(slide)
    rest = name[len(slide) :].lower()
    for own in SLIDE_ENDINGS:
        if rest.startswith(own + "."):
            rest = rest[len(own) :]
    return rest if name.startswith(slide) else None


def cells_by_class(kinds, xy):
    """{class: (m, 2)} of the classes (n,) of places (n, 2), "all cells" first; "" is no class."""
    places = {}
    for i, kind in enumerate(kinds):
        places.setdefault(kind, array("q")).append(i)
    places.pop("", None)
    by_class = {one_line(kind): xy[np.array(places[kind])] for kind in sorted(places)}
    return {EVERY: xy, **by_class}


def tell_passed(path, passed, say):
    """Say what of a file was passed over: a Counter."""
    passed = +passed  # without zeros
    opened = passed.pop(OPEN, 0)
    if opened:
        say(f"{path}: {opened:,} rings whose ends don't meet are taken as closed")
    if passed:
        each = [f"{n:,} {what}" for what, n in sorted(passed.items())]
        say(f"{path}: passed over {', '.join(each)}")


# ----- Tables -------------------------------------------------------------------------------------


def read_place_table(path, slide, mpp, origin, say=print, every=False):
    """Places (m, 2) of a slide's rows of a table, and its other columns {name: values}: those that
    name classes, as texts; with `every` the others too, as numbers.
    """

    def take(header, rows):
        known = {plain(name): name for name in header}
        xy, scale, start = place_columns(path, known, mpp, origin)
        texts = {known[name] for name in ("image", *OBJECTS, *CLASSES) if name in known}
        wanted = {name: name not in texts for name in header if every or name in texts.union(xy)}
        return known, xy, scale, start, read_columns(path, header, rows, wanted)

    known, names, scale, start, columns = read_table(path, take, reading(path))
    kept = rows_kept(path, slide, columns, known, say)
    if len(kept) < len(columns[names[0]]):
        columns = {name: taken(values, kept) for name, values in columns.items()}
    xy = np.stack([columns.pop(name) for name in names], 1)
    there = (np.abs(xy) < FAR).all(1)
    if not there.all():
        raise InputError(f"{path}: row {2 + kept[int(np.argmin(there))]}: x, y is no place")
    return xy * scale + start, columns


def read_columns(path, header, rows, wanted):
    """{column: its values} of a table's Rows, of which only these stay in memory.

    wanted: {column: whether its values are numbers (n,), else a list of texts}.
    """
    parts, bare, n = {name: [] for name in wanted}, {}, 0
    for block in blocks_of(path, header, rows, wanted):
        n += len(block[0])
        if n * len(wanted) > MOST:
            raise InputError(f"{path}: over {MOST:,} values, more than a slide has")
        for (name, are_numbers), values in zip(wanted.items(), block, strict=True):
            if are_numbers:
                parts[name].append(values)
                continue
            bare.update((text, from_cell(text)) for text in set(values) - bare.keys())
            parts[name] += map(bare.get, values)  # every text once in memory
    for name, are_numbers in wanted.items():
        if are_numbers:
            parts[name] = np.concatenate([np.zeros(0), *parts[name]])
    return parts


def blocks_of(path, header, rows, wanted):
    """Yield the columns wanted, block for block: while lines are plain, NumPy takes them apart."""
    place = {name: j for j, name in enumerate(header)}
    places = [place[name] for name in wanted]
    types = [(str(j), "f8" if wanted[header[j]] else "O") for j in places]
    lines, seen = [], 2
    while lines := list(islice(rows.lines, BLOCK)):
        if '"' in "".join(lines) or {line.count(rows.mark) for line in lines} != {len(header) - 1}:
            break
        try:
            block = np.loadtxt(
                lines, types, comments=None, delimiter=rows.mark, usecols=places, ndmin=1
            )
        except ValueError:  # a text in place of a number
            break
        seen += len(lines)
        yield [block[name] if kind == "f8" else block[name].tolist() for name, kind in types]
    others = rows.rest(lines)
    while block := list(islice(others, BLOCK)):
        check_even(path, header, block, seen)
        seen += len(block)
        columns = [[row[j] for row in block] for j in places]
        are_numbers = wanted.values()
        yield [numbers(c) if is_n else c for c, is_n in zip(columns, are_numbers, strict=True)]


def taken(values, kept):
    """Those of an array or a list."""
    return values[kept] if isinstance(values, np.ndarray) else [values[i] for i in kept]


def rows_kept(path, slide, columns, known, say):
    """Numbers of the rows that are places of the slide: no annotations, none of other images."""
    images = columns.get(known.get("image"), ())
    own = set(own_images(path, slide, Counter(images), say))
    kept = np.full(len(next(iter(columns.values()))), True)
    passed = Counter()
    if images:
        kept = np.array([image in own for image in images])
        others = few(sorted(set(images) - own), 3)
        passed[f"rows of other images ({others})"] = (~kept).sum()
    for name in OBJECTS:
        objects = columns.get(known.get(name), ())
        odd = {text for text in set(objects) if any(word in text.lower() for word in NO_CELLS)}
        if odd:
            is_odd = np.array([text in odd for text in objects])
            passed["rows of annotations"] += (kept & is_odd).sum()
            kept &= ~is_odd
    tell_passed(path, passed, say)
    return np.flatnonzero(kept)


def own_images(path, slide, images, say):
    """Which of the images that QuPath names in a table are the slide."""
    named = sorted(image for image in images if image.strip())
    own = [image for image in named if is_image_of(image, slide)]
    if len(own) > 1:
        raise InputError(f"{path}: rows of {len(own)} images of {slide} ({few(own, 3)}); keep one")
    if not own and len(named) > 1:
        raise InputError(
            f"{path}: rows of {len(named)} images ({few(named, 3)}), none of them {slide}"
        )
    for image in named if not own else ():  # a slide that was renamed, or a table
        if any(is_image_of(image, other) for other in find_slides(path.parents[1])):
            raise InputError(f"{path}: its rows are of image {image}, which is another slide")
        say(f"{path}: its rows are of image {image}; taken as those of {slide}, by the file's name")
        own = [image]
    return [*own, *(image for image in images if not image.strip())]


def is_image_of(image, slide):
    """Whether QuPath's name of an image is a slide's: its path, its ending, " - series 0"."""
    name, slide = re.split(r"[/\\]", composed(image))[-1].strip(), composed(slide)
    rest = re.fullmatch(r"(\.[a-z]\w{0,7})?( - .*| \(.*\))?", name[len(slide) :], re.IGNORECASE)
    series = (rest and rest[2]) or ""
    return bool(rest) and name.startswith(slide) and not series.lower().endswith(SLIDE_ENDINGS)


def plain(name):
    """A column's name in lower case, with the micro sign that QuPath writes, not its likes."""
    return name.lower().replace("μ", "µ").replace(" um", " µm")


def place_columns(path, known, mpp, origin):
    """(names of the columns of x and y, what a unit is in pixels, where they begin).

    x, y: level-0 pixels of ours; QuPath's: Centroid X px or µm, in its own frame.
    """
    for before, after, scale, start in (
        ("", "", 1, (0, 0)),
        ("centroid ", " px", 1, origin),
        ("centroid ", " µm", 1 / np.asarray(mpp), origin),
    ):
        wanted = [before + axis + after for axis in "xy"]
        if all(name in known for name in wanted):
            return [known[name] for name in wanted], scale, start
    raise InputError(
        f"{path}: no columns x and y (level-0 pixels); it has {few(list(known.values()))}"
    )


# ----- GeoJSON ------------------------------------------------------------------------------------


def read_outlines(folder, slide, origin, kind=None, say=print):
    """Polygons of regions/<slide>.geojson as `lab.space.inside` takes them, or None.

    kind: those of one class; where the file has none of it, that is said.
    """
    path = found_one(folder / "regions", slide, SHAPES, say)
    if path is None:
        return None
    passed, with_places = Counter(), []
    for f in read_geojson(path, passed, lambda name: ending_of(name, slide) in SHAPES):
        passed["points"] += len(f.points)
        if f.polygons:
            with_places.append(f)
        if len(with_places) > OUTLINES:
            raise InputError(f"{path}: over {OUTLINES:,} outlines, more than a slide has")
    if kind:
        classes = sorted({f.kind for f in with_places} - {""})
        asked, kind = kind, find_word(kind, classes)
        if kind is None:
            say(f"{path}: no region of class {asked}; it has {few(classes) or 'no classes'}")
            return None
        for f in with_places:
            own = f"of class {f.kind}" if f.kind else "without a class"
            passed[f"outlines {own}"] += f.kind != kind
        with_places = [f for f in with_places if f.kind == kind]
    polygons = []
    for f in with_places:
        for rings in f.polygons:
            if len(rings[0]) > 2:
                polygons.append([ring + origin for ring in rings])
            else:
                passed["outlines of fewer than three points"] += 1
    tell_passed(path, passed, say)
    if not polygons:
        raise InputError(
            f"{path}: no Polygon or MultiPolygon in it: draw an outline, export it as GeoJSON"
        )
    return polygons


def shape_centres(path, slide, say):
    """Classes (m,) and places (m, 2) of a file's cells: points, and centroids of polygons."""
    passed, kinds, places = Counter(), [], [np.zeros((0, 2))]
    features = read_geojson(path, passed, lambda name: ending_of(name, slide) in SHAPES)
    while block := list(islice(features, SHAPES_AT_ONCE)):
        shapes = [f.polygons for f in block if f.polygons and not f.is_annotation]
        centres = iter(centroids(shapes))
        found = []
        for f in block:
            is_cell = f.polygons and not f.is_annotation
            found.append(next(centres)[None] if is_cell else f.points)
            passed["annotations"] += bool(f.polygons) and f.is_annotation
            kinds += [f.kind] * len(found[-1])
        places.append(np.concatenate(found))
        if len(kinds) > MOST:
            raise InputError(f"{path}: over {MOST:,} cells, more than a slide has")
    tell_passed(path, passed, say)
    return kinds, np.concatenate(places)
