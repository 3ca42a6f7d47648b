"""This implementation and the direct way, side by side in one run.

    python -m lab.bench [NAME ...]     encoder encoding kmeans macenko topk memory table lists
                                       networks bank contention growth tcga heads peers adco-learns
                                       adco-collapse
                                       (default: all; `memory` alone, for its peak)
    python -m lab.bench calibration [--only STUDY ...] [--runs X] [--seed N]
    python -m lab.bench growth [--runs X]     10 and 100 add sizes that take minutes
    python -m lab.bench heads [--bags FILE]
    python -m lab.bench peers [--slide FILE] [--mpp N] [--bags FILE]     other people's packages

The two ways are timed in turn after a warm-up. What is printed are medians of seconds, and the
median of the ratios of a pair, which holds where the machine's speed drifts. Three time nothing:
`calibration` prints what every p and interval promises, and what it keeps where the truth is known;
`adco-learns` what AdCo and SimCLR learn from pictures of known classes, and what each choice does;
`adco-collapse` draws how eq. 1 alone fails there, step for step.
"""

import argparse
import sys
from collections.abc import Callable

from lab.bench import speed
from lab.bench.collapse import draw_collapse
from lab.bench.contention import bench_contention
from lab.bench.encoding import bench_encoding
from lab.bench.growth import bench_growth
from lab.bench.heads import bench_heads
from lab.bench.peers import bench_peers
from lab.bench.tcga import bench_tcga
from lab.bench.timing import say
from lab.calibration.table import STUDIES, print_table
from lab.histcode import toy


def bench_calibration(only=(), runs=1.0, seed=0):
    """All p and intervals, nominal against measured. Nothing is timed."""
    print_table(only, runs, seed)


def bench_adco_learns():
    """Accuracy of a linear probe before and after the same steps of each way to learn."""
    for row in toy.table():
        say(row)


BENCHES: dict[str, Callable] = {
    "encoder": speed.bench_encoder,
    "encoding": bench_encoding,
    "kmeans": speed.bench_kmeans,
    "macenko": speed.bench_macenko,
    "topk": speed.bench_topk,
    "memory": speed.bench_memory,
    "table": speed.bench_table,
    "lists": speed.bench_lists,
    "networks": speed.bench_networks,
    "bank": speed.bench_bank,
    "adco-learns": bench_adco_learns,
    "adco-collapse": draw_collapse,
    "contention": bench_contention,
    "growth": bench_growth,
    "tcga": bench_tcga,
    "heads": bench_heads,
    "peers": bench_peers,
    "calibration": bench_calibration,
}


def main():
    parser = argparse.ArgumentParser(prog="python -m lab.bench", description=__doc__.split("\n")[0])
    names = [*BENCHES, "all"]
    parser.add_argument("name", nargs="*", choices=names, default="all", help="default: all")
    a = parser.add_argument_group("calibration").add_argument
    a("--only", nargs="+", choices=STUDIES, default=(), metavar="STUDY", help=" ".join(STUDIES))
    a(
        "--runs",
        type=float,
        default=1.0,
        help="times the simulated cohorts of each study; of growth: the sizes",
    )
    a("--seed", type=int, default=0)
    a = parser.add_argument_group("peers and heads").add_argument
    a("--slide", metavar="FILE", help="default: one is drawn")
    a("--mpp", type=float, metavar="N", help="of the slide, where its file has none")
    a("--bags", metavar="FILE", help="a table of label, bag, features; default: drawn bags")
    o = parser.parse_args()
    for name in BENCHES if "all" in o.name else o.name:
        if name == "calibration":
            bench_calibration(o.only, o.runs, o.seed)
        elif name == "growth":
            bench_growth(o.runs)
        elif name == "heads":
            bench_heads(o.bags)
        elif name == "peers":
            bench_peers(o.slide, o.mpp, o.bags)
        else:
            BENCHES[name]()


if __name__ == "__main__":
    sys.exit(main())
