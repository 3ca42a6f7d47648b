"""What commands without a cohort do: simulated pairs, in minutes on two cores, and their maps."""

from pathlib import Path

from lab.cohort.samples import read_samples
from lab.simulation.cohort import simulate_cohort

PAIRS = "demo-pairs"  # the cohort: each patient has a tumour and a normal slide
PATIENTS = 40  # of it  [ours]
MAPPED = 1  # patients whose slides are drawn with their scores  [ours]
BUDGETS = {  # of each verb: the usual values of options there  [ours]
    "pretrain": {"weights": "random", "tile_px": 72, "view_px": 64, "batch": 64, "epochs": 6},
    "diagnose": {"epochs": 10, "hidden": 64, "rotate": True},
    "expression": {"epochs": 10, "hidden": 64, "ridge": "auto"},
}


def demo_of(o):
    """{option: its usual value} where no cohort is given, and o.cohort becomes PAIRS; else {}."""
    if o.cohort is not None:
        return {}
    o.cohort = PAIRS
    return BUDGETS[o.verb]


def draw_pairs():
    there = (Path(PAIRS) / "samples.csv").is_file()
    print(f"no cohort given: a SIMULATED one, {'in' if there else 'drawn into'} {PAIRS}/")
    if not there:
        simulate_cohort(PAIRS, PATIENTS, normal_in=1)


def draw_maps(o, folder, *options):
    """Maps of the tumour and the normal slides of the first patients by a run -> exit status."""
    samples = read_samples(PAIRS)
    patients = sorted({sample["patient"] for sample in samples})[:MAPPED]
    slides = [sample["slide"] for sample in samples if sample["patient"] in patients]
    run = o.parse(["heatmap", str(folder), *slides, "--device", o.device, *options])
    return run.function(run)
