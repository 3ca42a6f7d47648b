"""python he2rna.py samples COHORT: the slides of TCGA joined to an expression table by barcode.

COHORT/slides and COHORT/expression are there; a GDC sample sheet says each patient's project. A
slide belongs to the sample of its patient, type and vial; a diagnostic slide's vial Z may be any.
[ours] Writes COHORT/samples.csv, in seconds.
"""

import re
from pathlib import Path

from lab.cohort.expression import raw_expression
from lab.cohort.samples import SAMPLE_TYPES
from lab.cohort.slides import can_be_named, find_slides
from lab.commands.he2rna.options import check_new
from lab.exchange.gdc import print_counts, read_sheet
from lab.files import InputError, save_csv
from lab.progress import say_left_out

BARCODE = re.compile(r"(TCGA-\w\w-\w{4})-(\d\d)([A-Z])-\d\d-(DX|TS|BS|MS)")  # patient, type, vial
FROZEN = ("TS", "BS", "MS")  # of the frozen block: its top, bottom or middle [HistCode Methods]


def options(parser):
    a = parser.add_argument
    a("cohort", help="the cohort folder, with slides/ and expression.npz, .csv or .csv.gz")
    a(
        "--sheet",
        metavar="FILE",
        help="a GDC sample sheet of the slides or of the expression: says each patient's project "
        "(default: the only gdc_sample_sheet*.tsv of COHORT)",
    )
    a(
        "--kind",
        choices=("DX", "frozen", "all"),
        default="DX",
        help="of slides: DX, diagnostic ones (default: FFPE, as HE2RNA), or frozen ones (TS, BS, "
        "MS: as HistCode, cut beside the piece whose RNA was read)",
    )
    a("--overwrite", action="store_true", help="replace what is there already")
    a("--dry-run", action="store_true", help="count patients, samples and slides, write nothing")


def run(o):
    cohort = Path(o.cohort)
    path = cohort / "samples.csv"
    check_new(path, o)
    project_of = projects(*read_sheet(cohort, o.sheet))
    key, ids, *_ = raw_expression(cohort)
    if key == "slide":
        raise InputError(f"{cohort}/expression: its rows are slides already, wanted are samples")
    rows, left_out = rows_of(find_slides(cohort), project_of, sorted(ids), o.kind)
    lost = [row["slide"] for row in rows if row["sample"] not in set(ids)]
    left_out["slides in samples.csv have no expression: train leaves them out"] = lost
    say_left_out(left_out)
    if not rows:
        raise InputError(f"{cohort}: no slide is left for samples.csv")
    if len(lost) == len(rows):
        raise InputError(
            f"{cohort}: none of {len(rows)} slides (the first is {lost[0]}) has its patient and "
            f"type in the expression table (its first sample is {ids[0]})"
        )
    print_counts(rows, patients="patient", samples="sample", slides="slide")
    if o.dry_run:
        print("dry run: nothing was written")
        return 0
    save_csv(path, rows[0], (row.values() for row in rows))
    print(f"{path}: {len(rows):,} slides")
    return 0


def projects(sheet, path):
    """{patient: project}"""
    of = {}
    for row in sheet:
        if row["why"]:
            continue
        patient, project = row["patient"], row["project"]
        if of.setdefault(patient, project) != project:
            raise InputError(f"{path}: patient {patient} is of {of[patient]} and of {project}")
    return of


def rows_of(slides, project_of, ids, wanted):
    """(rows of samples.csv, {why: what is left out}); ids: the samples that have expression."""
    vials = {}
    for sample in ids:
        vials.setdefault(sample[:15], []).append(sample)  # of a patient and type: TCGA-XX-XXXX-01
    rows, left_out, several = [], {}, {}
    for slide in slides:
        found = BARCODE.match(slide.upper())
        why = cannot_use(slide, found, project_of, wanted)
        if why:
            left_out.setdefault(why, []).append(slide)
            continue
        patient, code, vial, kind = found.groups()
        own = f"{patient}-{code}{vial}"
        there = vials.get(own[:15], [])
        sample = own if own in there or not there else there[0]
        if len(there) > 1 and own not in there:
            several[own[:15]] = f"{there[0]} ({', '.join(there[1:])})"
        row = {"slide": slide, "patient": patient, "project": project_of[patient]}
        row.update(sample=sample, sample_type=SAMPLE_TYPES.get(code, code), kind=kind)
        rows.append(row)
    why = "samples have several vials of expression; the first by barcode is taken"
    left_out[why] = list(several.values())
    return rows, left_out


def cannot_use(slide, found, project_of, wanted):
    """Why a slide is left out, or ''."""
    if not found:
        return "slides whose name is no TCGA slide's barcode"
    if not can_be_named(slide):
        return "slides whose name has control characters or over 200 bytes: no file's name here"
    if wanted not in ("all", "frozen" if found[4] in FROZEN else found[4]):
        return f"slides of other kinds than --kind {wanted}"
    if found[1] not in project_of:
        return "slides of patients that the sheet doesn't name"
    return ""
