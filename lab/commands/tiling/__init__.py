"""From a whole-slide image to tile features and super-tiles.

What both papers do before they learn anything from RNA: find the tissue (Otsu), cut it into square
tiles of a fixed size in micrometres, bring their stains to a common colour (HistCode; a switch),
describe each tile with a ResNet50, and average neighbouring tiles into 100 super-tiles (k-means).

    python tiling.py doctor COHORT        what is seen in each slide: mpp, level, threshold, tiles
    python tiling.py features COHORT      tiles/<slide>.npz and .png, features/resnet50/<slide>.npy
    python tiling.py features COHORT --encoder FILE     the same with HistCode's encoder
    python tiling.py supertiles COHORT    supertiles/resnet50/<slide>.npz
    python tiling.py export COHORT [SLIDE...] --h5 --geojson --csv      for CLAM, QuPath, AnnData
    python tiling.py simulate FOLDER      a simulated cohort with known truth

COHORT is a folder with slides/ (anything OpenSlide reads, or .png/.jpg) and, if there is one,
samples.csv. A step makes what is missing and skips what is there; what was made with other settings
is made anew, and that is said. Slides that fail are listed in failed.csv, the others go on. A
folder belongs to one run at a time. To share the slides out, start each process with its own RANK
of WORLD_SIZE, as torchrun and a cluster's array jobs do.

Every coordinate that is kept is a level-0 pixel of OpenSlide's frame; QuPath's begins at the bounds
of what was scanned, and what comes from there or goes there is moved. No ICC profile is applied.
"""

from lab.commands.options import prepared

VERBS = {
    "doctor": "say what is seen in each slide",
    "tiles": "tissue and tiles",
    "features": "tiles, then features",
    "supertiles": "tiles, features, then super-tiles",
    "export": "tiles and features for other programs",
    "simulate": "draw a simulated cohort with known truth",
}


def prepare(argv=None):
    return prepared("tiling", __doc__, VERBS, None, argv)


def main(argv=None):
    return prepare(argv)()
