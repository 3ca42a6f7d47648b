"""What is known of places on a slide, looked at beside the slide: does it lie where tissue is?

What was asked for and is not there is told, and so is what was passed over, or can't lie where it
is said to: cells in µm taken for pixels stand in a corner of the slide, and count all the same.
"""

from dataclasses import dataclass, field

import numpy as np

from lab import space
from lab.cohort.places import EVERY, read_outlines, read_places
from lab.exchange.qupath import qupath_frame
from lab.files import few, one_line
from lab.words import find_word

LOOKED_AT = 5000  # places, evenly spread, tell whether all lie on tissue  [ours]
FEWEST = 20  # places that can tell by which factor they are off  [ours]
BETTER = 0.3  # by this share more of them lie on tiles, and twice as many  [ours]
REACH = 98  # percentile of places and of tiles that says how far they go  [ours]
DOWNSAMPLES = (2, 4, 8, 16, 32, 64)  # of levels that places may be pixels of


@dataclass
class Truth:
    """Cells, spots and outlines of a slide, and what there is to say of them."""

    name: str
    origin: np.ndarray = None  # level-0 pixel in which QuPath's frame begins
    cells: dict | None = None  # {class: (m, 2)}
    spots: tuple | None = None  # (m, 2), {column: (m,)}
    outlines: list | None = None
    notes: list = field(default_factory=list)  # what was passed over
    lacks: list = field(default_factory=list)  # what was asked for and is not there

    def note(self, text):
        text = one_line(text)
        self.notes.append(text)
        print(f"{self.name}: {text}", flush=True)

    def lack(self, text):
        """What is not there, or can't be so: the command goes on and ends with status 1."""
        self.lacks.append(one_line(text))

    def lines(self):
        """The section of a report."""
        said = [f"- {text}" for text in dict.fromkeys(self.lacks + self.notes)]
        return ["## Not found, or passed over", "", *said, ""] if said else []


def truth_of(home, name, slide, mpp, coords, tile, asked_cells=None, asked_regions=None):
    """The Truth of a slide in home/points, spots and regions, as its tiles (n, 2) bear it out.

    asked_cells: a class of cells, asked_regions: of outlines, that must be there.
    """
    truth = cells_of(home, name, slide, mpp, coords, tile)
    kinds = list(truth.cells or ())
    if asked_cells and find_word(asked_cells, kinds) is None:
        why = f"no cells of class {asked_cells}; it has {few(kinds)}"
        if truth.cells is None:
            why = f"no file of {name} in {home / 'points'}"
        truth.lack(f"not found: --cells {asked_cells}: {why}")
    truth.outlines = read_outlines(home, name, truth.origin, asked_regions, truth.note)
    if asked_regions and truth.outlines is None:
        truth.lack(f"not found: --regions {asked_regions}: no outline of it in {home / 'regions'}")
    if truth.outlines:
        rings = [ring for rings in truth.outlines for ring in rings]
        corners = np.concatenate(rings)
        look_at(truth, "corners of outlines", corners, slide.dimensions, mpp, coords, tile)
    return truth


def cells_of(home, name, slide, mpp, coords, tile):
    """The Truth of a slide as far as cells and spots go."""
    um, origin = qupath_frame(slide, mpp)
    truth = Truth(name, origin)
    truth.cells, truth.spots = read_places(home, name, um, origin, truth.note)
    step = space.pitch(coords)
    if truth.cells and step is not None and step < tile - space.ROUNDED:
        truth.notes.append("tiles overlap, and a cell counts in every tile that holds it")
    places = {"cells": (truth.cells or {}).get(EVERY), "spots": (truth.spots or (None,))[0]}
    for what, xy in places.items():
        if xy is not None and len(xy):
            look_at(truth, what, xy, slide.dimensions, mpp, coords, tile)
    return truth


def look_at(truth, what, xy, size, mpp, coords, tile):
    """Tell of places (m, 2) that lie off the slide, or on no tile."""
    slack = tile if what.startswith("corners") else 1
    off = ((xy < -slack) | (xy > np.add(size, slack))).any(1)
    most_off = off.mean() > 0.5
    cause, is_sure = misplaced(xy[:: 1 + len(xy) // LOOKED_AT], mpp, coords, tile, most_off)
    tell = truth.lack if most_off or is_sure else truth.note
    if off.any():
        x, y = xy[off.argmax()]
        width, height = size
        tell(
            f"{off.sum():,} of {len(xy):,} {what} lie off the slide of {width:,} x {height:,} px, "
            f"the first at {x:.0f}, {y:.0f}{cause}"
        )
    elif cause:
        tell(f"{what} {'do' if is_sure else 'may'} not lie where they should{cause}")
    elif what == "cells" and not (space.holder(xy, coords, tile) >= 0).any():
        truth.lack(f"none of {len(xy):,} {what} lies on a tile")


def misplaced(xy, mpp, coords, tile, most_off):
    """(What would bring places (m, 2) onto the tiles, in words, '' where nothing does; whether it
    must be so).

    Tried are µm in place of pixels, pixels of other levels, x for y; and, where most are off the
    slide, what makes places smaller: in a corner of tissue anything small enough has room. Places
    that would reach as far as the tiles, and lie on them as well as now, may be so.
    """
    if len(xy) < FEWEST:
        return "", False
    factors = {1 / mpp, *DOWNSAMPLES}
    if most_off:
        factors |= {mpp, *(1 / d for d in DOWNSAMPLES)}
    tried = {f"times {factor:.3g}": xy * factor for factor in sorted(factors)}
    tried["x and y change places"] = xy[:, ::-1]
    shares = {how: on_tiles(at, coords, tile) for how, at in tried.items()}
    here, best = on_tiles(xy, coords, tile), max(shares, key=shares.get)
    is_sure = shares[best] >= max(here + BETTER, 2 * here)
    if not is_sure:
        far = np.percentile(coords, REACH, axis=0)
        reach = {how: np.percentile(at, REACH, axis=0) - far for how, at in tried.items()}
        as_far = [how for how, off in reach.items() if (abs(off) < tile).all()]
        as_good = [how for how in as_far if shares[how] >= here and how.startswith("times")]
        if not as_good:
            return "", False
        best = as_good[0]
    why = "are they pixels of another level?"
    if best == f"times {1 / mpp:.3g}":
        why = f"are they µm, of which {mpp:.3g} are a pixel, or pixels of another level?"
    elif best == f"times {mpp:.3g}":
        why = f"are they pixels, of {mpp:.3g} µm, in columns of µm, or of another level?"
    elif best.startswith("x"):
        why = "is x the row?"
    said = f"; {here:.0%} are on tiles, and {shares[best]:.0%} would be, {best}: {why}"
    return said, is_sure


def on_tiles(xy, coords, tile):
    """The share of places that lie on a tile."""
    return (space.holder(xy, coords, tile) >= 0).mean()
