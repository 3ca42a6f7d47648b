"""python tiling.py supertiles COHORT: the super-tiles of every slide.

It costs a fraction of a second for each slide. Tiles and features are made first where they are
missing. Written are COHORT/supertiles/<encoder>/<slide>.npz: the mean features of 100 clusters of
neighbouring tiles, which of the 100 there are, and the cluster of each tile.
"""

from lab.cohort.supertiles import make_supertiles
from lab.commands.tiling.over_slides import over_slides, tiling_options


def options(parser):
    tiling_options(parser)


def run(o):
    return over_slides(o, make_supertiles)
