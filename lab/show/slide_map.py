"""The map of one slide as heatmap writes it, pictures, tables and report; the table of several.

A verb makes a SlideMap, compares it with what is known of the slide, and writes it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tiling
from lab.cohort.places import EVERY
from lab.exchange.qupath import tiles_geojson
from lab.files import save_csv, save_json, save_text
from lab.progress import table
from lab.provenance import marked
from lab.show.gallery import draw_gallery
from lab.show.maps import draw_heatmap, whole_folder
from lab.show.plots import counted, draw_scatter

PICTURE_PX = 1500  # long edge of the slide in a map, before it is drawn [ours]


@dataclass
class SlideMap:
    """What is shown and said of one slide."""

    name: str
    title: str
    slide: Any
    size: tuple  # (W, H) level-0 pixels
    mpp: float  # µm per level-0 pixel
    tile: float  # edge of a tile, level-0 pixels
    coords: np.ndarray  # (T, 2) level-0 pixels
    scores: np.ndarray  # (T,), nan where a tile has none
    unit: str  # of the scores
    columns: dict  # of tiles.csv {name: (T,)}
    lines: list = field(default_factory=list)  # of report.md
    tables: dict = field(default_factory=dict)  # other tables {file: (header, rows)}
    about: dict = field(default_factory=dict)  # words of the summary's row {column: word}
    figures: dict = field(default_factory=dict)  # and its figures {column: value}
    cells: dict | None = None  # {class: (m, 2)} drawn on the slide, the first in front
    counted: str = ""  # the class that is compared; the column "cells: ..." has it on each tile
    outlines: list | None = None  # drawn on slide and map
    outline: str = "outline"  # what they are
    dots: tuple | None = None  # name, places (m, 2) and values (m,) of spots drawn on the map
    spots: tuple | None = None  # what was measured on spots, for the summary of several slides
    span: Any = None  # lab.show.maps.Span of the colours
    without: str = ""  # why there are places without a tile
    words: list = field(default_factory=list)  # of lab.provenance
    said: str = ""  # in short, for the terminal
    lacks: list = field(default_factory=list)  # what was asked for and is not there


def write_map(folder, done, origin):
    """A slide's folder, at once; tiles.geojson in the frame that begins at `origin`, QuPath's."""
    shown = ~np.isnan(done.scores)
    place = done.coords[shown], done.tile, done.scores[shown]
    with whole_folder(folder) as work:
        draw_map(work / "map.png", done, place)
        ends = f"{done.title}: highest and lowest tiles"
        cells = cells_in(done)
        shown_cells = {kind: counts[shown] for kind, counts in cells.items()}
        about = ends, done.unit, done.mpp, shown_cells
        draw_gallery(work / "gallery.png", done.slide, *place, *about, words=done.words)
        counts = cells.get(done.counted)
        if counts is not None:
            axes = done.unit, f"{done.counted} in a tile"
            points = done.scores[shown], counts[shown]
            draw_scatter(work / "cells.png", *points, *axes, done.title, done.words)
        write_tables(work, done, origin)


def draw_map(path, done, place):
    """The map of the tiles that have a score; the others are counted in its legend."""
    rgb, _ = tiling.thumbnail(done.slide, done.mpp, max(done.size) * done.mpp / PICTURE_PX)
    missing = len(done.scores) - len(place[2])
    without = done.without
    if missing:
        without += f"; {counted(missing, 'tile')} without a score"
    draw_heatmap(
        path,
        rgb,
        done.size,
        done.mpp,
        *place,
        done.title,
        done.unit,
        done.cells,
        done.outlines,
        span=done.span,
        spots=done.dots,
        outline=done.outline,
        without=without,
        words=done.words,
    )


def drawn_cells(cells, first):
    """{class: places} as they are drawn: one class in front; all cells only where none has one."""
    kinds = [kind for kind in cells if kind != EVERY] or [EVERY]
    kinds.sort(key=lambda kind: kind != first)
    return {kind: cells[kind] for kind in kinds}


def cells_in(done):
    """{class: counts (T,)} of the cells on each tile; what is drawn comes first, all cells never
    beside their classes.
    """
    kinds = [name.removeprefix("cells: ") for name in done.columns if name.startswith("cells: ")]
    kinds.sort(key=lambda kind: kind != done.counted)
    if len(kinds) > 1:
        kinds = [kind for kind in kinds if kind in (done.counted,) or kind != EVERY]
    return {kind: done.columns[f"cells: {kind}"] for kind in kinds}


def write_tables(work, done, origin):
    """tiles.csv, the same as GeoJSON, the other tables and report.md."""
    values = np.stack(list(done.columns.values()), 1)
    rows = []
    for xy, row in zip(done.coords, values, strict=True):
        rows.append([*xy, *("" if np.isnan(v) else f"{v:.6g}" for v in row)])
    done.tables["tiles.csv"] = ("x", "y", *done.columns), rows
    for file, (header, rows) in done.tables.items():
        save_csv(work / file, *marked(header, rows, done.words))
    places = done.coords - origin, done.tile
    about = list(done.columns), done.words, done.title, done.scores
    save_json(work / "tiles.geojson", tiles_geojson(*places, values, *about), indent=None)
    save_text(work / "report.md", done.lines)


def lacks_of(maps):
    """{slide: what was asked for and is not there}, once for each slide."""
    return {done.name: "; ".join(dict.fromkeys(done.lacks)) for done in maps if done.lacks}


def table_of_maps(maps):
    """The figures of each slide, their means and medians."""
    about = dict.fromkeys(name for done in maps for name in done.about)
    names = dict.fromkeys(name for done in maps for name in done.figures)
    rows = [[done.name, len(done.scores), *done.about.values()] for done in maps]
    means, medians = (["mean", "", *("" for _ in about)] for _ in range(2))
    medians[0] = "median"
    for name in names:
        values = np.array([done.figures.get(name, np.nan) for done in maps])
        known = values[~np.isnan(values)]
        for row, value in zip(rows, values, strict=True):
            row.append("" if np.isnan(value) else f"{value:.3f}")
        means.append(f"{known.mean():.3f}" if len(known) else "")
        medians.append(f"{np.median(known):.3f}" if len(known) else "")
    return table(("slide", "tiles", *about, *names), [*rows, means, medians])
