"""What is known of places on a slide, looked at beside the slide: does it lie where tissue is?

What was asked for and is not there is told, and so is what was passed over, or can't lie where it
is said to: cells in µm taken for pixels stand in a corner of the slide, and count all the same.
"""

from dataclasses import dataclass, field

import numpy as np

from lab import space
from lab.cohort.places import read_outlines, read_places
from lab.exchange.qupath import qupath_frame
from lab.files import few
from lab.words import find_word

EVERY = "all cells"
LOOKED_AT = 5000  # places, evenly spread, tell whether all lie on tissue  [ours]
FEWEST = 20  # places that can tell by which factor they are off  [ours]
BETTER = 0.3  # by this share more of them lie on tiles, and twice as many  [ours]
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
        self.notes.append(text)
        print(f"{self.name}: {text}", flush=True)

    def lack(self, text):
        """Not found: the command goes on and ends with status 1."""
        self.lacks.append(text)

    def lines(self):
        """The section of a report."""
        said = [f"- {text}" for text in self.lacks + self.notes]
        return ["## Not found, or passed over", "", *said, ""] if said else []


def truth_of(home, name, slide, mpp, coords, tile, asked_cells=None, asked_regions=None):
    """The Truth of a slide in home/points, spots and regions, as its tiles (n, 2) bear it out.

    asked_cells: a class of cells, asked_regions: of outlines, that must be there.
    """
    truth = cells_of(home, name, slide, mpp, coords, tile)
    if asked_cells:
        kinds = list(truth.cells or ())
        if truth.cells is None:
            truth.lack(f"--cells {asked_cells}: no file of {name} in {home / 'points'}")
        elif find_word(asked_cells, kinds) is None:
            truth.lack(
                f"--cells {asked_cells}: no cells of class {asked_cells}; it has {few(kinds)}"
            )
    truth.outlines = read_outlines(home, name, truth.origin, asked_regions, truth.note)
    if asked_regions and truth.outlines is None:
        truth.lack(f"--regions {asked_regions}: no outline of it in {home / 'regions'}")
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
    tell = truth.lack if off.mean() > 0.5 else truth.note
    sample = xy[:: 1 + len(xy) // LOOKED_AT]
    cause = misplaced(sample, mpp, coords, tile)
    if off.any():
        x, y = xy[off.argmax()]
        width, height = size
        tell(
            f"{off.sum():,} of {len(xy):,} {what} lie off the slide of {width:,} x {height:,} px, "
            f"the first at {x:.0f}, {y:.0f}{cause}"
        )
    elif cause:
        truth.lack(f"{what} hardly lie on tissue{cause}")
    elif what == "cells" and not (space.holder(xy, coords, tile) >= 0).any():
        truth.lack(f"none of {len(xy):,} {what} lies on a tile")


def misplaced(xy, mpp, coords, tile):
    """What would bring places (m, 2) onto the tiles, in words, '' where nothing does.

    Tried are µm in place of pixels and the reverse, pixels of other levels, and x for y.
    """
    if len(xy) < FEWEST:
        return ""
    tried = {"x and y change places": xy[:, ::-1]}
    for factor in sorted({1 / mpp, mpp, *DOWNSAMPLES, *(1 / d for d in DOWNSAMPLES)}):
        tried[f"times {factor:.3g}"] = xy * factor
    shares = {how: (space.holder(at, coords, tile) >= 0).mean() for how, at in tried.items()}
    here = (space.holder(xy, coords, tile) >= 0).mean()
    best = max(shares, key=shares.get)
    if shares[best] < max(here + BETTER, 2 * here):
        return ""
    why = "are they pixels of another level?"
    if best == f"times {1 / mpp:.3g}":
        why = f"are they µm, of which {mpp:.3g} are a pixel, or pixels of another level?"
    elif best == f"times {mpp:.3g}":
        why = f"are they pixels, of {mpp:.3g} µm, in columns of µm, or of another level?"
    elif best.startswith("x"):
        why = "is x the row?"
    return f"; {here:.0%} are on tiles, and {shares[best]:.0%} would be, {best}: {why}"
