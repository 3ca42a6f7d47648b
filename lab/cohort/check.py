"""All checks of a cohort, in one list of findings: before hours of work, and for doctor.

A check takes `found` (lab.findings.Findings) first, adds what it finds and goes on. What needs no
pixels stands here in the order of its cost; what a program alone knows (labels) adds to the same
list where that program reads its cohort.
"""

from collections import Counter
from pathlib import Path

import he2rna
from lab.cohort.expression import read_expression
from lab.cohort.features import features_of, sample_of
from lab.cohort.names import alike_groups, person, would_match
from lab.cohort.samples import join, select
from lab.cohort.slides import find_slides, known_mpp
from lab.cohort.tiles import table_mpp
from lab.exchange.clam import FOREIGN, foreign
from lab.exchange.layout import SIZES, kind_said
from lab.files import InputError, few, fingerprint
from lab.processes import share_out
from lab.progress import counted
from lab.words import tidy

SHOWN = 5  # names or pairs in a sentence  [ours]
SIZES_DIFFER = 0.1  # relative: so much tiles of one size may differ on several scanners  [ours]


def check_cohort(found, cohort, samples, o, table=None):
    """Add to `found` what is wrong or doubtful about a cohort.

    samples: rows of samples.csv; table: (key, ids, genes, a) of read_expression, where there is
    one; o: options that name the features, None where none are asked for.
    """
    path = Path(cohort) / "samples.csv"
    check_patients(found, path, samples)
    check_projects(found, path, samples)
    if table:
        check_join(found, cohort, samples, *table[:2])
    if o:
        check_files(found, cohort, samples, o)


def read_checked(found, cohort, samples, o):
    """(genes, a (n, genes), the join of samples with its rows) of the expression table of a cohort,
    when all that is found of both is told; InputError where something of it can't be meant.
    """
    table = found.of(read_expression, cohort, o.scale, found.warn)
    joined = table and found.of(join, samples, *table[:2], Path(cohort) / "expression")
    check_cohort(found, cohort, samples, o, table)
    found.tell(cohort)
    return *table[2:], joined


# ----- Names --------------------------------------------------------------------------------------


def check_patients(found, path, samples):
    """Warn of patients and slides that may be one in several spellings, or by their barcodes."""
    for what in ("patient", "slide"):
        groups = list(alike_groups(s[what] for s in samples))
        if groups:
            said = few([" and ".join(map(repr, group)) for group in groups], SHOWN)
            found.warn(
                f"{path}: {said} may each be the same {what}: one spelling keeps a patient whole, "
                "out of both sides of a fold"
            )
    renamed = {}
    for s in samples:
        own = person(s["slide"]) or person(s.get("sample", ""))
        if own and not person(s["patient"]):
            renamed.setdefault(s["patient"], set()).add(own)
    several = [f"{p} ({few(sorted(own), 3)})" for p, own in renamed.items() if len(own) > 1]
    if several:
        found.warn(
            f"{path}: slides of several patients, by their barcodes, are said to be of one: "
            f"{few(several, SHOWN)}"
        )
    elif renamed:
        patient, own = next(iter(renamed.items()))
        found.warn(
            f"{path}: {len(renamed)} patients have other names than the barcodes of their slides "
            f"({patient} for {few(list(own))}); other tables will know them by the barcodes"
        )


def check_projects(found, path, samples):
    """Refuse a project that has the name of a cancer of several; warn of one in two spellings."""
    names = dict.fromkeys(s["project"] for s in samples)
    cancers = {}
    for name in names:
        cancers.setdefault(he2rna.short(name), []).append(name)
    for merged, parts in he2rna.MERGED.items():
        there = [name for part in parts for name in cancers.get(part, ())]
        if merged in cancers and there:
            found.refuse(
                f"{path}: project {cancers[merged][0]} has the name under which {few(there)} are "
                "counted together: give it another name, or give its slides those projects"
            )
    for group in alike_groups(he2rna.short(name) for name in names):
        found.warn(f"{path}: {' and '.join(map(repr, group))} may each be the same project")


def check_join(found, cohort, samples, key, ids):
    """Warn of slides without expression that would have some if names were spelled alike."""
    key = key or ("sample" if "sample" in samples[0] else "slide")
    alone = [name for name in dict.fromkeys(s.get(key, "") for s in samples) if name]
    rows = set(ids)
    alone = [name for name in alone if name not in rows]
    hint = would_match(alone, rows - {s.get(key) for s in samples}) if alone else ""
    if hint and len(alone) < len(samples):  # where none is left, join refuses
        found.warn(f"{cohort}: {len(alone)} {key}s have no row in the expression table; {hint}")


# ----- Files --------------------------------------------------------------------------------------


def check_files(found, cohort, samples, o):
    """Name the files, or features, that two patients share, and features of another width."""
    chosen = samples
    if getattr(o, "project", None):
        chosen, _ = select(samples, "all", o.project)
    patient_of = {s["slide"]: s["patient"] for s in chosen}
    files = {} if o.features else find_slides(cohort)
    there = names_of_features(features_of(o)) if o.features else set(files)
    alone = [name for name in patient_of if name not in there]
    hint = would_match(alone, there - {s["slide"] for s in samples}) if alone else ""
    if hint:
        found.warn(f"{cohort}: {len(alone)} slides of samples.csv have no file; {hint}")
    seen = share_out(look_at, cohort, list(patient_of), o)
    sizes = {}
    for name, (size, _) in seen.items():
        sizes.setdefault(size, []).append(name)
    same = {}
    for names in sizes.values():
        for name in names if len({patient_of[name] for name in names}) > 1 else ():
            if files:
                content = fingerprint(files[name])
            else:
                content = sample_of(features_of(o), name)["sample"]
            same.setdefault(content, []).append(name)
    for names in same.values():
        if len({patient_of[name] for name in names}) > 1:
            said = few([f"{name} of patient {patient_of[name]}" for name in names], SHOWN)
            found.warn(
                f"{cohort}: {said} are the same {'features' if o.features else 'file'}: whose is "
                "it? It would stand on both sides of a fold"
            )
    if o.features:
        check_kinds(found, o.features, {name: kind for name, (_, kind) in seen.items()})


def names_of_features(source):
    """The names of the slides that have features made elsewhere."""
    folders = [source, *(source / inner for inner in FOREIGN.values())]
    paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return {tidy(path.stem) for path in paths if path.suffix in FOREIGN}


def look_at(cohort, slides, o):
    """{slide: (bytes of its file, the kind of its features)} of slide files or features; what can't
    be read is left out, and fails in its place.
    """
    seen = {}
    if not o.features:
        found = find_slides(cohort)
        return {name: (found[name].stat().st_size, None) for name in slides if name in found}
    source, given = features_of(o), table_mpp(cohort)
    try:
        found = find_slides(cohort)
    except InputError:  # they are not read
        found = {}
    for name in counted("looking at features", slides, "slides"):
        try:
            path, features, coords, said = foreign(source, name, 1)
        except InputError:
            continue
        mpp = known_mpp(found.get(name), given.get(name, o.mpp), name, o.force_mpp)
        kind = {"features a tile": features.shape[-1], **kind_said(said, coords, mpp, o.tile_um)}
        seen[name] = path.stat().st_size, kind
    return seen


def check_kinds(found, where, kinds):
    """Warn of features made elsewhere that were not made alike, and of places that no map can have.

    kinds: {slide: {what: value}}.
    """
    for what in dict.fromkeys(key for kind in kinds.values() for key in kind):
        values = {name: kind[what] for name, kind in kinds.items() if kind.get(what)}
        if not values:
            continue
        if what == "no map":
            name, why = next(iter(values.items()))
            found.warn(
                f"--features {where}: no map can be drawn of {len(values)} slides, such as {name}: "
                f"{why}"
            )
            continue
        every = sorted(values.values())
        usual = every[len(every) // 2] if what in SIZES else Counter(every).most_common(1)[0][0]
        odd = [f"{name} {value}" for name, value in values.items() if not like(value, usual)]
        if odd:
            found.warn(
                f"--features {where}: {what}: {usual} on {len(values) - len(odd)} slides, not on "
                f"{len(odd)}: {few(odd, SHOWN)}. Were they made alike?"
            )


def like(value, usual):
    """Whether two kinds are one; sizes differ a little, as the pixels of scanners do."""
    if isinstance(usual, float):
        return abs(value / usual - 1) <= SIZES_DIFFER
    return value == usual
