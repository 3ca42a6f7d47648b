"""python tiling.py features COHORT: the features of every tile.

It costs a second for 70 to 90 tiles on two CPU cores; a slide has up to 8,000. Tiles are made first
where they are missing. Written are COHORT/features/<encoder>/<slide>.npy, (n, D) float16, and
<slide>.json, which says what made them.
"""

from lab.cohort.encoding import make_features
from lab.commands.tiling.over_slides import over_slides, tiling_options


def options(parser):
    tiling_options(parser)


def run(o):
    return over_slides(o, make_features)
