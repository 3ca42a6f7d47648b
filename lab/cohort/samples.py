"""samples.csv: the slides of a cohort, whose they are; which of them are asked for."""

import re
from pathlib import Path

import numpy as np

import he2rna
from lab.cohort.names import person, would_match
from lab.cohort.slides import too_long, unnameable
from lab.files import InputError, few, read_rows
from lab.findings import Findings
from lab.words import is_unknown, tidy

WANTED = ("slide", "patient", "project")
NAMES = ("patient", "project", "sample", "sample_type")  # which stand in reports, tables, plots
PRIMARY = ("primary tumor", "primary tumour", "tumor", "tumour")  # sample_type values (or 01) meant
# by the "samples from primary tumors only"   [HE2RNA Methods, TCGA Pan-Cancer Dataset]

SAMPLE_TYPES = {  # characters 14-15 of a TCGA barcode, as the GDC's sheets spell them
    "01": "Primary Tumor",
    "02": "Recurrent Tumor",
    "03": "Primary Blood Derived Cancer - Peripheral Blood",
    "05": "Additional - New Primary",
    "06": "Metastatic",
    "07": "Additional Metastatic",
    "11": "Solid Tissue Normal",
}
TUMOUR = ("1", "01", "yes", "true", "tumor", "tumour", "primary tumor", "primary tumour")
NORMAL = ("0", "11", "no", "false", "normal", "solid tissue normal")
TISSUES = {**dict.fromkeys(TUMOUR, 1), **dict.fromkeys(NORMAL, 0)}  # words for both [ours]


def read_samples(cohort):
    """samples.csv as a list of dicts, sorted by slide: the order of its rows decides nothing.

    InputError on what can't be meant.

    Columns: slide (the file's name without its ending), patient, project; optional sample,
    sample_type, mpp, any labels.
    """
    path = Path(cohort) / "samples.csv"
    if not path.is_file():
        what = "a folder" if path.is_dir() else "missing"
        raise InputError(f"{path} is {what}: wanted is a table with the columns {','.join(WANTED)}")
    header, lines = read_rows(path, even=True)
    missing = [name for name in WANTED if name not in header]
    if missing or len(set(header)) < len(header):
        why = f"no column {', '.join(missing)}" if missing else "a column stands there twice"
        raise InputError(
            f"{path}: {why}; it has {', '.join(header) or 'nothing'}; wanted {','.join(WANTED)} "
            "separated by commas"
        )
    rows, seen, wrong = [], set(), {}
    for i, values in enumerate(lines):
        if not any(value.strip() for value in values):
            continue
        row = dict(zip(header, (value.strip() for value in values), strict=True))
        why = wrong_sample(row)
        if not why and row["slide"] in seen:
            why = f"slide {row['slide']} stands there twice"
        if why:
            wrong.setdefault(why, []).append(i + 2)
        seen.add(row["slide"])
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no rows")
    found = Findings()
    for why, numbers in wrong.items():
        found.refuse(f"{path} row{'s' * (len(numbers) > 1)} {few(numbers)}: {why}")
    refuse_barcodes(found, path, rows)
    refuse_one_file(found, path, rows)
    found.tell(path)
    return sorted(rows, key=lambda row: row["slide"])


def wrong_sample(row):
    """What a row lacks, or why its slide is no name of a file; '' where nothing is wrong."""
    for column in WANTED:
        if not row[column]:
            return f"empty {column}"
    for column in NAMES:
        if not row.get(column, "").isprintable():
            return f"{column} {row[column]} has control characters, which no name here can have"
    if is_unknown(row["patient"]):
        return (
            f"patient {row['patient']} is no patient, though rows that share the word would be "
            "one: write whose slide it is, or leave the row out"
        )
    slide = row["slide"]
    if Path(slide).name != slide or slide in (".", ".."):
        return f"slide {slide} is a path; give the file name without its ending"
    return "" if too_long(slide) else unnameable(slide)  # too long a name fails alone


def refuse_one_file(found, path, rows):
    """Refuse slides that differ in case alone, where the disk takes their files for one."""
    if not path.with_name(path.name.upper()).exists():
        return
    first = {}
    for row in rows:
        slide = row["slide"]
        other = first.setdefault(slide.casefold(), slide)
        if other != slide:
            found.refuse(
                f"{path}: {other} and {slide} are one file's name on this disk: rename one"
            )


def refuse_barcodes(found, path, rows):
    """Refuse barcodes that are no patient's, and a patient whose slides are of several patients.

    A patient under the barcodes of his samples would be divided between folds.
    """
    longer, spellings = {}, {}
    for row in rows:
        slide, patient, sample = row["slide"], row["patient"], row.get("sample", "")
        persons = {name: person(name) for name in (patient, slide, sample) if person(name)}
        if len(set(persons.values())) > 1:
            said = " and ".join(persons)
            found.refuse(f"{path}: {said}, in one row, are barcodes of different patients")
        own = persons.get(patient)
        if own and len(patient) > len(own):
            longer[patient] = own
        for own in persons.values():
            spellings.setdefault(own, set()).add(patient)
    if longer:
        first, own = next(iter(longer.items()))
        found.refuse(
            f"{path}: patients {few(list(longer), 3)} are barcodes of samples or slides, which "
            f"divide a patient between folds: write {own} for {first}"
        )
    for own, several in spellings.items():
        if len(several) > 1 and not several & longer.keys():
            found.refuse(
                f"{path}: patients {few(sorted(several))} are one, {own} by the barcodes of their "
                "slides: one name keeps a patient out of both sides of a fold"
            )


def join(samples, key, ids, path="expression"):
    """Samples that have expression -> (them, their row in the table, what is left out).

    Joined by slide, or by `sample` (several slides of a sample share its row) where the table's
    first column says so, or doesn't say and samples.csv has that column.
    """
    key = key or ("sample" if "sample" in samples[0] else "slide")
    if key not in samples[0]:
        raise InputError(f"{path}: its rows are samples, but samples.csv has no column sample")
    at = {name: i for i, name in enumerate(ids)}
    kept, alone, owner = [], [], {}
    for s in samples:
        if s[key] not in at:
            alone.append(s["slide"])
            continue
        kept.append(s)
        if owner.setdefault(s[key], s["patient"]) != s["patient"]:
            raise InputError(
                f"samples.csv: sample {s[key]} is of two patients, {owner[s[key]]} and "
                f"{s['patient']}: its expression would stand on both sides of a fold"
            )
    if not kept:
        hint = would_match([s[key] for s in samples], ids) or (
            f"are genes the rows and {key}s the columns, or does the first column name the wrong "
            "one of slide and sample?"
        )
        raise InputError(
            f"{path}: none of its {len(ids)} rows (the first is {ids[0]!r}) is a {key} of "
            f"samples.csv (the first is {samples[0][key]!r}); {hint}"
        )
    left = {
        "slides without expression": alone,
        f"expression rows ({key}) without a slide": [i for i in ids if i not in owner],
    }
    return kept, np.array([at[s[key]] for s in kept]), left


def select(samples, types, project, what="slide", path="samples.csv"):
    """Samples of primary tumours or the given types, and of one project -> (them, left out)."""
    left = {}
    if "sample_type" in samples[0] and types != "all":
        samples, others = of_types(samples, types, what, path)
        left[f"{what}s of other sample types than {types or 'primary tumour'}"] = others
    if project:
        samples = of_projects(samples, project, path)
    return samples, left


def of_types(samples, types, what, path):
    """Samples of these types, and the names of the others."""
    wanted = {sample_type(text) for text in types.split(",")} if types else set(PRIMARY)
    kept = [s for s in samples if sample_type(s["sample_type"]) in wanted]
    absent = wanted - {sample_type(s["sample_type"]) for s in kept}
    if not kept or (types and absent):
        there = ", ".join(sorted({s["sample_type"] for s in samples}))
        raise InputError(
            f"no {what} has sample_type {', '.join(sorted(absent))}; {path} has {there}: choose "
            "with --types, or --types all"
        )
    return kept, [s[what] for s in samples if sample_type(s["sample_type"]) not in wanted]


def sample_type(text):
    """A type's name in lower case, also of its code in barcodes."""
    return SAMPLE_TYPES.get(text.strip(), text.strip()).lower()


def of_projects(samples, projects, path):
    """Samples of these projects, or of the parts of merged ones (LUNG: LUAD and LUSC)."""
    there = {he2rna.short(s["project"]) for s in samples}
    wanted = set()
    projects = tidy(projects)
    whole = he2rna.short(projects) in there  # a name may have commas
    for name in [projects] if whole else projects.split(","):
        name = he2rna.short(name.strip())
        parts = {name, *he2rna.MERGED.get(name, ())}
        if not parts & there:
            names = ", ".join(sorted({s["project"] for s in samples}))
            raise InputError(f"--project {projects}: {path} has {names}")
        wanted |= parts
    return [s for s in samples if he2rna.short(s["project"]) in wanted]


def barcode(name):
    """(patient, 1 tumour, 0 normal or None) of a name that begins as TCGA's do, or (None, None)."""
    found = re.match(r"(TCGA-\w\w-\w{4})-(\d\d)", name.upper())
    return (found[1], TISSUES.get(found[2])) if found else (None, None)
