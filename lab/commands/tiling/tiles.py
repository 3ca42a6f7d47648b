"""python tiling.py tiles COHORT: where the tissue is, and the tiles on it.

It costs a second or so for each slide. Written are COHORT/tiles/<slide>.npz, with the tiles'
corners and edge in level-0 pixels, the threshold of the tissue and all settings, and <slide>.png, a
picture of them: look at it before you go on.
"""

from lab.cohort.tiles import make_tiles
from lab.commands.tiling.over_slides import over_slides, tiling_options


def options(parser):
    tiling_options(parser)


def run(o):
    return over_slides(o, make_tiles)
