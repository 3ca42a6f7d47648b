"""lab.cohort.samples"""

import csv
import re
from pathlib import Path

import numpy as np

import he2rna
from lab.cohort.slides import RESERVED, can_be_named
from lab.files import InputError

PRIMARY = (
    "primary tumor",
    "primary tumour",
    "tumor",
    "tumour",
)  # sample_type values, or 01, meant by the
#                              "samples from primary tumors only"       [HE2RNA Methods, TCGA Pan-Cancer Dataset]


SAMPLE_TYPES = {
    "01": "Primary Tumor",
    "02": "Recurrent Tumor",
    "03": "Primary Blood Derived Cancer - Peripheral Blood",
    "05": "Additional - New Primary",
    "06": "Metastatic",
    "07": "Additional Metastatic",
    "11": "Solid Tissue Normal",
}  # characters 14-15 of a TCGA barcode, as the GDC's sheets spell them


TISSUES = {
    **dict.fromkeys(
        ("1", "01", "yes", "true", "tumor", "tumour", "primary tumor", "primary tumour"), 1
    ),
    **dict.fromkeys(("0", "11", "no", "false", "normal", "solid tissue normal"), 0),
}  # words for tumour, normal [ours]


def read_samples(cohort):
    """samples.csv as a list of dicts in file order. Raises InputError on what can't be meant.

    Columns: slide (file name without its ending), patient, project; optional sample, sample_type, mpp, any labels.
    """
    path = Path(cohort) / "samples.csv"
    if not path.is_file():
        raise InputError(
            f"{path} is {'a folder' if path.is_dir() else 'missing'}: wanted is a table with the columns "
            "slide,patient,project"
        )
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(f)
            header = [c.strip() for c in next(reader, [])]
            lines = [(reader.line_num, [v.strip() for v in row]) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(
            f"{path}: not a comma-separated table in UTF-8 ({e}); save it as one"
        ) from None
    missing = [c for c in ("slide", "patient", "project") if c not in header]
    if missing or len(set(header)) < len(header):
        raise InputError(
            f"{path}: "
            + (f"no column {', '.join(missing)}" if missing else "a column stands there twice")
            + f"; it has {', '.join(header) or 'nothing'}; wanted slide,patient,project separated by commas"
        )
    rows, seen = [dict(zip(header, values)) for _, values in lines], set()
    for (line, values), row in zip(lines, rows):
        if len(values) != len(header):
            raise InputError(
                f"{path} line {line}: {len(values)} fields, the header has {len(header)}"
            )
        for column in ("slide", "patient", "project"):
            if not row[column]:
                raise InputError(f"{path} line {line}: empty {column}")
        if row["slide"] in seen:
            raise InputError(f"{path} line {line}: slide {row['slide']} stands there twice")
        if Path(row["slide"]).name != row["slide"] or row["slide"] in (".", ".."):
            raise InputError(
                f"{path} line {line}: slide {row['slide']} is a path; give the file name without its ending"
            )
        if not can_be_named(row["slide"]):
            raise InputError(
                f"{path} line {line}: slide {row['slide'][:50]} can't be the name of a file here (control "
                f"characters, over 200 bytes, or one of {', '.join(RESERVED)}): rename it"
            )
        seen.add(row["slide"])
    if not rows:
        raise InputError(f"{path}: no rows")
    return rows


def join(samples, key, ids, path="expression"):
    """Rows of samples.csv that have expression -> (kept sample rows, their row in the table, lines on what is left out).

    Joined by slide, or by `sample` (several slides of a sample share its row) where the table's first column says so, or
    doesn't say and samples.csv has that column.
    """
    key = key or ("sample" if "sample" in samples[0] else "slide")
    if key not in samples[0]:
        raise InputError(f"{path}: its rows are samples, but samples.csv has no column sample")
    at = {name: i for i, name in enumerate(ids)}
    kept = [s for s in samples if s[key] in at]
    alone = [s["slide"] for s in samples if s[key] not in at]
    owner = {}
    for s in kept:
        if owner.setdefault(s[key], s["patient"]) != s["patient"]:
            raise InputError(
                f"samples.csv: sample {s[key]} is of two patients, {owner[s[key]]} and {s['patient']}: its "
                "expression would stand on both sides of a fold"
            )
    unused = [i for i in ids if i not in owner]
    if not kept:
        raise InputError(
            f"{path}: none of its {len(ids)} rows (the first is {ids[0]!r}) is a {key} of samples.csv (the "
            f"first is {samples[0][key]!r}); are genes the rows and {key}s the columns, "
            "or does the first column name the wrong one of slide and sample?"
        )
    return (
        kept,
        np.array([at[s[key]] for s in kept]),
        {"slides without expression": alone, f"expression rows ({key}) without a slide": unused},
    )


def select(samples, types, project, what="slide", path="samples.csv"):
    """Rows of primary tumours (or of the given sample types), and of one project. -> (rows, what was left out)."""
    left, kind = {}, lambda text: SAMPLE_TYPES.get(text.strip(), text.strip()).lower()
    if "sample_type" in samples[0] and types != "all":
        wanted = list(map(kind, types.split(","))) if types else PRIMARY
        kept = [s for s in samples if kind(s["sample_type"]) in wanted]
        if not kept or types and set(wanted) - {kind(s["sample_type"]) for s in kept}:
            there = ", ".join(sorted({s["sample_type"] for s in samples}))
            raise InputError(
                f"no {what} has sample_type {', '.join(wanted)}; {path} has {there}: choose with --types, "
                "or --types all"
            )
        left[f"{what}s of other sample types than " + (types or "primary tumour")] = [
            s[what] for s in samples if kind(s["sample_type"]) not in wanted
        ]
        samples = kept
    if project:
        names = sorted({s["project"] for s in samples})
        wanted = [
            {he2rna.short(p.strip()), *he2rna.MERGED.get(he2rna.short(p.strip()), ())}
            for p in project.split(",")
        ]
        if not all(w & set(map(he2rna.short, names)) for w in wanted):
            raise InputError(f"--project {project}: {path} has {', '.join(names)}")
        samples = [s for s in samples if he2rna.short(s["project"]) in set.union(*wanted)]
    return samples, left


def barcode(name):
    """(patient, 1 tumour, 0 normal or None) of a TCGA barcode, which a name begins with; else (None, None)."""
    found = re.match(r"(TCGA-\w\w-\w{4})-(\d\d)", name)
    return (found.group(1), TISSUES.get(found.group(2))) if found else (None, None)
