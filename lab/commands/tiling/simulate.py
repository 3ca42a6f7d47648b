"""python tiling.py simulate FOLDER: draw a simulated cohort with known truth.

It costs about a second for each slide. Slides, cells, expression, MSI status and diagnosis are
drawn from a seed; FOLDER is then a cohort like any other.
"""

from lab.commands.options import natural
from lab.simulation.cohort import simulate_cohort


def options(parser):
    a = parser.add_argument
    a("cohort", metavar="folder", help="the cohort folder to write")
    a("--patients", type=int, default=64, help="in two projects, at least 4 (default 64)")
    a(
        "--normal-in",
        type=int,
        default=4,
        metavar="N",
        help="one patient in N has a normal slide too (default 4); 1: all, for differential "
        "expression",
    )
    a("--seed", type=natural, default=0, help="of every random draw (default 0)")


def run(o):
    simulate_cohort(o.cohort, o.patients, o.seed, normal_in=o.normal_in)
    return 0
