"""lab.commands.he2rna.samples"""

from pathlib import Path

from lab.cohort.expression import read_expression
from lab.cohort.samples import SAMPLE_TYPES
from lab.cohort.slides import can_be_named, find_slides
from lab.exchange.gdc import FROZEN, SLIDE_BARCODE, print_counts, read_sheet
from lab.files import InputError, save_csv
from lab.he2rna.options import check_new
from lab.progress import say_left_out


def run(o):
    """A cohort's TCGA slides joined to its expression table by their barcodes -> its samples.csv."""
    cohort, project, of, rows, left_out, several = Path(o.cohort), {}, {}, [], {}, {}
    check_new(cohort / "samples.csv", o)
    sheet, path = read_sheet(cohort, o.sheet)
    for r in sheet:
        if project.setdefault(r["patient"], r["project"]) != r["project"]:
            raise InputError(
                f"{path}: patient {r['patient']} is of {project[r['patient']]} and of {r['project']}"
            )
    key, ids, _, _ = read_expression(cohort)
    if key == "slide":
        raise InputError(
            f"{cohort}/expression: its rows are slides already: wanted samples, as expression makes it"
        )
    for i in sorted(ids):
        of.setdefault(i[:15], []).append(i)  # patient and type: TCGA-XX-XXXX-01
    for slide in find_slides(cohort):
        found = SLIDE_BARCODE.match(slide.upper())
        patient, code, vial, kind = found.groups() if found else (None,) * 4
        group = "frozen" if kind in FROZEN else kind
        why = (
            "slides whose name is no TCGA slide's barcode"
            if not found
            else "slides whose name can't be that of a file here: control characters, or over 200 bytes"
            if not can_be_named(slide)
            else f"slides of other kinds than --kind {o.kind}"
            if o.kind not in ("all", group)
            else "slides of patients that the sheet doesn't name"
            if patient not in project
            else ""
        )
        if why:
            left_out.setdefault(why, []).append(slide)
            continue
        own = f"{patient}-{code}{vial}"  # Z of a diagnostic slide is any vial [ours]
        there = of.get(own[:15], [])
        if len(there) > 1 and own not in there:
            several[own[:15]] = f"{there[0]} ({', '.join(there[1:])})"
        sample = own if own in there or not there else there[0]
        rows.append(
            dict(
                slide=slide,
                patient=patient,
                project=project[patient],
                sample=sample,
                sample_type=SAMPLE_TYPES.get(code, code),
                kind=kind,
            )
        )
    lost = [r["slide"] for r in rows if r["sample"] not in set(ids)]
    say_left_out(
        {
            **left_out,
            "slides in samples.csv have no expression: train leaves them out": lost,
            "samples have several vials of expression; the first by barcode is taken": list(
                several.values()
            ),
        }
    )
    if len(lost) == len(rows):
        raise InputError(
            f"{cohort}: "
            + (
                f"none of {len(rows)} slides (the first is {lost[0]}) has its patient and type in "
                f"the expression table (its first sample is {ids[0]})"
                if rows
                else "no slide is left for samples.csv"
            )
        )
    print_counts(rows, patients="patient", samples="sample", slides="slide")
    if o.dry_run:
        print("dry run: nothing was written")
        return 0
    save_csv(cohort / "samples.csv", rows[0], (r.values() for r in rows))
    print(f"{cohort / 'samples.csv'}: {len(rows):,} slides")
    return 0


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
        help="of slides: DX, diagnostic ones (default: FFPE, as "
        "HE2RNA), or frozen ones (TS, BS, MS: as HistCode, cut beside the piece whose RNA was read)",
    )

    a("--overwrite", action="store_true", help="replace what is there already")
    a(
        "--dry-run",
        action="store_true",
        help="count patients and samples of each project, write nothing",
    )
