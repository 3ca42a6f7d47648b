"""What each choice is worth: the default run, and each choice turned alone, on the same seeds."""

import time
from contextlib import contextmanager

import numpy as np
import torch
from scipy import special

from lab.audit.choices import chosen_of
from lab.files import InputError, read_rows, save_csv, save_text
from lab.progress import clock, table
from lab.provenance import marked, merged, of_folder, warning
from lab.runs import claim_folder

HEADER = ("command", "choice", "seed", "measure", "value", "change", "seconds")
SEEDS = 3  # runs of each choice [ours]
COUNTS = ("HS", "BH", "mistakes")  # measures that are counts
AGAIN = "again"  # the default once more, on another number of threads
UNTURNED = ("default", AGAIN)
NOTE = (
    "First row: the run of default settings. The others: the run with this choice alone turned to "
    "its other side, less the default run of the same seed; mean and 95 % interval over the seeds "
    "(Student's t). `again` is the default on another number of threads, whose sums are rounded "
    "otherwise. Its largest change over the seeds is the floor: a mean change that does not exceed "
    "it is within rounding, whatever its interval. Where `again` changes nothing, another CPU may. "
    "The patients are the same, so nothing here speaks of other patients."
)


def audit_options(a, every):
    """The options --code and --seeds of an audit; a: add_argument of its parser."""
    a(
        "--code",
        type=chosen_of(every),
        action="extend",
        default=[],
        metavar="A,B",
        help=f"these choices alone (default all: {', '.join(every)})",
    )
    a(
        "--seeds",
        type=count,
        default=SEEDS,
        help=f"runs of each, --seed and those after it (default {SEEDS})",
    )


def count(text):
    """A whole number from 1 on, for argparse."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def choices_asked(texts, names, left_out):
    """{command: choices to turn}: those named, or all; says why some are left out.

    texts: {command: {choice: what it is turned to}}; left_out: [(command, choices, why)].
    """
    asked = {c: [name for name in texts[c] if name in (names or texts[c])] for c in texts}
    for command, choices, why in left_out:
        for name in set(choices) & set(asked[command]):
            asked[command].remove(name)
            print(f"without {command}'s {name}: {why}")
    if not any(asked.values()):
        raise InputError(f"--code {','.join(names)}: nothing is left to turn: {left_out[-1][2]}")
    return asked


def run_audit(folder, measure, asked, texts, seeds, settings, what):
    """Measure the default and each choice asked for, and write after each what it changes.

    measure(command, choice, seed) -> ({measure: value}, exit status); settings: those that all
    have in common; what: a line for the report. Goes on where it stopped: audit.csv has what is
    done. A choice that raises InputError is left out. Returns the exit status.
    """
    start = time.monotonic()
    claim_folder(folder, {**settings, "command": "audit"}, "audit.csv")
    done = read_audit(folder / "audit.csv", texts)
    runs = []
    for command, names in asked.items():
        for name in [*UNTURNED, *names] if names else []:
            runs += [(command, name, seed) for seed in seeds]
    status, failed = 0, {}
    for i, (command, name, seed) in enumerate(runs):
        if (command, name, seed) in done or failed.keys() & {(command, "default"), (command, name)}:
            continue
        print(f"\n--- {command}, {name}, seed {seed} ({i + 1} of {len(runs)})", flush=True)
        begun = time.monotonic()
        try:
            with threads(other_number() if name == AGAIN else torch.get_num_threads()):
                values, own_status = measure(command, name, seed)
        except InputError as e:
            failed[command, name] = e
            print(f"without {command}'s {name}: {e}")
            continue
        status |= own_status
        done[command, name, seed] = values, time.monotonic() - begun
        write_audit(folder, done, texts, what)
        left = len(runs) - i - 1
        mean = np.mean([seconds for _, seconds in done.values()])
        print(f"{left} runs left, {clock(mean * left)} at the mean of the {len(done)} done")
    if not done:
        raise InputError(f"nothing could be measured: {next(iter(failed.values()))}")
    print(f"\nreport: {folder / 'audit.md'}   ({clock(time.monotonic() - start)})")
    return status or int(bool(failed))


def other_number():
    """A number of threads that is not the one in use."""
    return 1 if torch.get_num_threads() > 1 else 2


@contextmanager
def threads(number):
    """Compute on so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_audit(path, texts):
    """{(command, choice, seed): ({measure: value}, seconds)} of audit.csv, {} without it."""
    done, whole = {}, True
    try:
        for row in read_rows(path)[1] if path.is_file() else []:
            command, name, seed, measure, value, _, seconds = row[: len(HEADER)]
            values, _ = done.setdefault((command, name, int(seed)), ({}, float(seconds)))
            values[measure] = float(value)
        for (command, name, seed), (values, _) in done.items():
            known = name in (*UNTURNED, *texts[command])
            whole = whole and known and values.keys() == done[command, "default", seed][0].keys()
    except (KeyError, ValueError):
        whole = False
    if not whole:
        raise InputError(f"{path}: not whole, or not of this program: delete it to begin again")
    return done


def write_audit(folder, done, texts, what):
    """audit.csv, a row for each run and measure; audit.md, a row for each choice."""
    place = {}
    for command in texts:
        for name in (*UNTURNED, *texts[command]):
            place[command, name] = len(place)
    keys = sorted(done, key=lambda key: (place[key[:2]], key[2]))
    rows = []
    for key in keys:
        values, seconds = done[key]
        for measure, value in values.items():
            change = value - default_of(done, key)[measure]
            rows.append((*key, measure, f"{value:.9g}", f"{change:.9g}", f"{seconds:.6g}"))
    words = merged(*(of_folder(path.parent) for path in sorted(folder.glob("*/config.json"))))
    save_csv(folder / "audit.csv", *marked(HEADER, rows, words))
    lines = ["# What each choice is worth", "", *warning(words), what, ""]
    for command in dict.fromkeys(key[0] for key in keys):
        own = [key for key in keys if key[0] == command]
        header = ("choice", "turned to", *done[own[0]][0], "seeds", "time of one")
        names = dict.fromkeys(key[1] for key in own)
        rows = [report_row(done, [k for k in own if k[1] == name], texts) for name in names]
        lines += [f"## {command}", "", table(header, rows), ""]
    save_text(folder / "audit.md", lines)


def default_of(done, key):
    """The measures of the default run of the same seed."""
    command, _, seed = key
    return done[command, "default", seed][0]


def report_row(done, keys, texts):
    """A choice's row of the report: its change over seeds; the default's values."""
    command, name, _ = keys[0]
    cells = []
    for measure in done[keys[0]][0]:
        if name == "default":
            cells.append(over_seeds([done[key][0][measure] for key in keys], digits_of(measure)))
        else:
            floor = floor_of(changes(done, command, AGAIN, measure)) if name != AGAIN else None
            cells.append(said_change(changes(done, command, name, measure), measure, floor))
    seeds = ", ".join(str(seed) for *_, seed in keys)
    seconds = np.mean([done[key][1] for key in keys])
    said = {"default": "as it is", AGAIN: "the default, on another number of threads"}
    return name, {**texts[command], **said}[name], *cells, seeds, clock(seconds)


def changes(done, command, name, measure):
    """Change of a measure in each run of a choice."""
    keys = [key for key in done if key[:2] == (command, name)]
    return [done[key][0][measure] - default_of(done, key)[measure] for key in sorted(keys)]


def floor_of(again):
    """What rounding alone changes: the most of the runs of `again`; None without them."""
    return max(np.abs(again)) if len(again) else None


def said_change(values, measure, floor):
    """Mean change and interval over seeds, and whether rounding alone changes as much."""
    said = over_seeds(values, digits_of(measure), "+")
    if floor is not None and abs(np.mean(values)) <= floor:
        said += " within rounding"
    return said


def digits_of(measure):
    return 1 if measure in COUNTS else 3


def over_seeds(values, digits, sign=""):
    """'mean (95 % interval over seeds)', by Student's t; a sole value alone."""
    v = np.array(values, float)
    if len(v) == 1:
        return f"{v[0]:{sign}.{digits}f}"
    half = special.stdtrit(len(v) - 1, 0.975) * v.std(ddof=1) / len(v) ** 0.5
    low, mean, high = (
        f"{x:{sign}.{digits}f}" for x in (v.mean() - half, v.mean(), v.mean() + half)
    )
    return f"{mean} ({low} to {high})"
