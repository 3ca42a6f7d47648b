"""The map of one slide as heatmap writes it, pictures, tables and report; the table of several.

A verb makes a SlideMap, compares it with what is known of the slide, and writes it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tiling
from lab.exchange.qupath import tiles_geojson
from lab.files import save_csv, save_json, save_text
from lab.progress import table
from lab.show.gallery import draw_gallery
from lab.show.maps import draw_heatmap, whole_folder
from lab.show.plots import draw_scatter

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
    points: np.ndarray | None = None  # (m, 2) drawn on the slide
    counted: str = ""  # what they are; the column "cells: ..." counts them on each tile
    outlines: list | None = None  # drawn on the slide
    spots: tuple | None = None  # what was measured on spots, for the summary of several slides
    said: str = ""  # in short, for the terminal
    lacks: list = field(default_factory=list)  # what was asked for and is not there


def write_map(folder, done, origin):
    """A slide's folder, at once; tiles.geojson in the frame that begins at `origin`, QuPath's."""
    shown = ~np.isnan(done.scores)
    place = done.coords[shown], done.tile, done.scores[shown]
    with whole_folder(folder) as work:
        rgb, _ = tiling.thumbnail(done.slide, done.mpp, max(done.size) * done.mpp / PICTURE_PX)
        ground = rgb, done.size, done.mpp
        words = done.title, done.unit
        draw_heatmap(work / "map.png", *ground, *place, *words, done.points, done.outlines)
        counts = done.columns.get(f"cells: {done.counted}")
        ends = f"{done.title}: highest and lowest tiles"
        draw_gallery(work / "gallery.png", done.slide, *place, ends, counts, done.counted)
        if counts is not None:
            axes = "score", f"{done.counted} in a tile"
            draw_scatter(work / "cells.png", done.scores, counts, *axes, done.title)
        write_tables(work, done, origin)


def write_tables(work, done, origin):
    """tiles.csv, the same as GeoJSON, the other tables and report.md."""
    values = np.stack(list(done.columns.values()), 1)
    rows = []
    for xy, row in zip(done.coords, values, strict=True):
        rows.append([*xy, *("" if np.isnan(v) else f"{v:.6g}" for v in row)])
    done.tables["tiles.csv"] = ("x", "y", *done.columns), rows
    for file, (header, rows) in done.tables.items():
        save_csv(work / file, header, rows)
    shapes = tiles_geojson(done.coords - origin, done.tile, values, list(done.columns))
    save_json(work / "tiles.geojson", shapes)
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
