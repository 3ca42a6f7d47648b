"""What the MSI study learns from: a cohort folder, or an .npz of arrays, read and checked."""

import collections
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

import he2rna
from lab.cohort.encoding import make_features
from lab.cohort.expression import read_expression
from lab.cohort.features import features_of, load_features, provenance
from lab.cohort.samples import join, read_samples, select
from lab.commands.options import report_failures
from lab.files import InputError, few, load_arrays
from lab.processes import share_out
from lab.progress import counted, say_left_out

MSI_SHARES = tuple(map(Fraction, ("1/6", "1/3", "1/2", "2/3", "3/4", "5/6")))  # [HE2RNA Fig. 5b]
LABELS = {"msi-h": "MSI-H", "msi-l": "MSI-L", "mss": "MSS", "indeterminate": "", "": ""}
LOG_BELOW = 30  # log2 of a count is below it, linear FPKM-UQ above [ours]
OF_COHORTS = ("types", "project", "features", "weights", "mpp", "tile_um", "min_tissue", "tissue")
ARRAYS = ("features", "expression", "genes", "patients", "msi")
WANTED = "numbers features (n, D) and expression (n, G); names genes (G,), patients (n,), msi (n,)"


@dataclass
class Study:
    """The slides of a study, a row each."""

    x: np.ndarray  # (S, D) mean feature
    y: np.ndarray  # (S, G) log expression, 0 where has_y says that there is none
    has_y: np.ndarray  # (S,)
    labels: np.ndarray  # (S,) MSI-H, MSI-L, MSS or empty
    patients: np.ndarray  # (S,)
    projects: np.ndarray  # (S,)
    hospital: np.ndarray | None  # (S,) A or B; None: to be drawn
    features: object  # what they are, for the run's settings
    dropped: int = 0  # slides without a label, that needed one
    failed: dict = None  # {slide: why}
    line: str = ""  # how many patients there are

    @property
    def high(self):
        return self.labels == "MSI-H"

    @property
    def in_b(self):
        """(S,) whether a slide may be hospital B's."""
        every = np.ones(len(self.x), bool)
        return every if self.hospital is None else self.hospital == "B"

    def take(self, rows):
        """The study of some rows."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        some = {k: v[rows] for k, v in arrays.items() if isinstance(v, np.ndarray)}
        return replace(self, **some)


def read_study(o):
    """The study of o.study, checked; says how many patients it has."""
    if not Path(o.study).exists():
        raise InputError(f"{o.study}: no such cohort folder or .npz file")
    study = study_of_cohort(o) if Path(o.study).is_dir() else study_of_file(o)
    low = study.labels == "MSI-L"
    if "msi-l" in o.code:
        low &= study.in_b  # labels of A are not used
        n_low = len(set(study.patients[low]))
        study = study.take(~low)
    in_b = study.in_b
    refuse_two_kinds(study.patients[in_b], study.labels[in_b], "labels")
    if study.hospital is not None:
        refuse_two_kinds(study.patients, study.hospital, "hospitals")
    label_of = dict(zip(study.patients[in_b], study.labels[in_b]))
    count = collections.Counter(label_of.values())
    where = "" if study.hospital is None else f", {len(label_of)} patients in hospital B"
    kinds = ", ".join(f"{count[kind]} {kind}" for kind in ("MSI-H", "MSI-L", "MSS"))
    study.line = (
        f"{len(set(study.patients))} patients, {len(study.x)} slides{where}: {kinds}; dropped: "
        f"{study.dropped} slides Indeterminate or without a label"
    )
    if "msi-l" in o.code:
        study.line += f", {n_low} patients MSI-L"
    print(study.line)
    others = len(label_of) - count["MSI-H"]
    if min(count["MSI-H"], others) < o.folds:
        raise InputError(
            f"{o.study}: {count['MSI-H']} MSI-H and {others} other patients{where and ' in B'}; "
            f"--folds {o.folds} needs as many of each"
        )
    return study


def refuse_two_kinds(patients, kinds, what):
    """InputError where slides of one patient differ."""
    of = {}
    for patient, kind in zip(patients, kinds):
        of.setdefault(patient, set()).add(kind)
    twice = [f"{p} ({', '.join(sorted(k))})" for p, k in sorted(of.items()) if len(k) > 1]
    if twice:
        raise InputError(
            f"{len(twice)} of {len(of)} patients have several {what}: {few(twice)}; a patient's "
            "slides must agree"
        )


def msi_labels(labels, where):
    """'MSI-H', 'MSI-L', 'MSS' or '' of each label, in any case; (S,)."""
    odd = collections.Counter(v for v in labels if v.strip().lower() not in LABELS)
    if odd:
        counts = few([f"{n} of {v!r}" for v, n in sorted(odd.items())])
        raise InputError(
            f"{where}: {counts}, of {len(labels)} labels, are none of MSI-H, MSI-L, MSS, "
            "Indeterminate or empty: write them so"
        )
    return np.array([LABELS[v.strip().lower()] for v in labels])


def needed(labels, has_y, hospital):
    """(S,) slides with what their hospital needs: expression in A, a label in B, both if drawn."""
    if hospital is None:
        return (labels != "") & has_y
    odd = sorted(set(hospital) - {"A", "B"})
    if odd:
        n = np.isin(hospital, odd).sum()
        raise InputError(f"hospital: {few(odd)} in {n} rows; A has expression, B has msi")
    return np.where(hospital == "A", has_y, labels != "")


# ----- A cohort folder ----------------------------------------------------------------------------


def study_of_cohort(o):
    """The slides of a cohort that have what their hospital needs."""
    cohort, table = Path(o.study), Path(o.study) / "samples.csv"
    samples = read_samples(cohort)
    if o.scale:
        raise InputError(f"--scale {o.scale}: only with FILE.npz; a cohort has linear FPKM-UQ")
    if "msi" not in samples[0]:
        raise InputError(f"{table}: no column msi; it has {few(list(samples[0]))}")
    samples, wrong_type = select(samples, o.types, o.project)
    labels = msi_labels([s["msi"] for s in samples], table)
    hospital = None
    if "hospital" in samples[0]:
        hospital = np.array([s["hospital"].upper() for s in samples])
    key, ids, genes, a = read_expression(cohort)
    joined, rows, unmatched = join(samples, key, ids, cohort / "expression")
    row_of = {s["slide"]: row for s, row in zip(joined, rows)}
    has_y = np.array([s["slide"] in row_of for s in samples])
    say_left_out({**wrong_type, **unmatched})

    use = needed(labels, has_y, hospital)
    slides = [samples[i]["slide"] for i in np.flatnonzero(use)]
    failed = {} if o.features else share_out(make_features, cohort, slides, o)
    mean = mean_features(cohort, o, slides, failed)
    ready = [i for i in np.flatnonzero(use) if samples[i]["slide"] in mean]
    y = np.zeros((len(ready), len(genes)), np.float32)
    for j, i in enumerate(ready):
        if has_y[i]:
            y[j] = he2rna.log_expression(a[row_of[samples[i]["slide"]]])
    features = provenance(cohort, o, list(mean))
    features.pop("supertiles")
    return Study(
        x=np.stack(list(mean.values())).astype(np.float32),
        y=y,
        has_y=has_y[ready],
        labels=labels[ready],
        patients=np.array([samples[i]["patient"] for i in ready]),
        projects=np.array([samples[i]["project"] for i in ready]),
        hospital=None if hospital is None else hospital[ready],
        features=features,
        dropped=int(((labels == "") & ~use).sum()),
        failed=failed,
    )


def mean_features(cohort, o, slides, failed):
    """{slide: (D,) the mean of its tiles}; puts into `failed` why a slide has none."""
    source, mean = features_of(o), {}
    for slide in counted("mean tiles", [s for s in slides if s not in failed], "slides"):
        try:
            features, _ = load_features(cohort, source, slide)
            mean[slide] = features.mean(0, dtype=np.float64)
        except InputError as e:
            failed[slide] = str(e)
    widths = sorted({len(v) for v in mean.values()})
    if len(widths) != 1:
        report_failures(failed, len(slides))
        why = "no slide has features and what its hospital needs"
        if widths:
            why = f"slides have features of {few(widths)} numbers: one encoder for all is needed"
        raise InputError(f"{cohort}: {why}")
    return mean


# ----- A file -------------------------------------------------------------------------------------


def study_of_file(o):
    """The rows of an .npz that have what their hospital needs."""
    path = Path(o.study)
    idle = [f"--{k.replace('_', '-')}" for k in OF_COHORTS if getattr(o, k) is not None]
    if idle:
        raise InputError(f"{few(idle)}: only with a cohort folder; {path} has features")
    z = checked_arrays(path)
    y = z["expression"].astype(np.float32)
    study = Study(
        x=z["features"].astype(np.float32),
        y=y,
        has_y=~np.isnan(y).all(1),
        labels=msi_labels(z["msi"].astype(str).tolist(), path),
        patients=z["patients"].astype(str),
        projects=np.full(len(y), "all"),
        hospital=np.char.upper(z["hospital"].astype(str)) if "hospital" in z else None,
        features=z["features"].shape[1],
        failed={},
    )
    use = needed(study.labels, study.has_y, study.hospital)
    if study.hospital is None and not study.has_y.all():
        print(f"{(~study.has_y).sum()} rows have no expression and are left out")
    dropped = int(((study.labels == "") & ~use).sum())
    study = replace(study.take(use), dropped=dropped)
    study.y[~study.has_y] = 0
    for name, values in (("features", study.x), ("expression", study.y)):
        bad = ~np.isfinite(values).all(1)
        if bad.any():
            raise InputError(
                f"{path}: {name} of {bad.sum()} rows are NaN or infinite, the first of patient "
                f"{study.patients[bad.argmax()]}"
            )
    study.y = as_logarithms(study.y, study.has_y, o.scale, path)
    return study


def checked_arrays(path):
    """The arrays of an .npz, of the shapes and kinds wanted."""
    z = load_arrays(path)
    if z is None:
        raise InputError(
            f"{path}: no such cohort folder, and no .npz that can be read (object arrays are "
            "pickles and not read: save names as str)"
        )
    lost = [name for name in ARRAYS if name not in z]
    if lost:
        raise InputError(f"{path}: no array {few(lost)}; it has {few(list(z))}")
    n, n_genes = z["patients"].size, z["genes"].size
    shapes = {name: (n,) for name in ("patients", "msi", "hospital")}
    shapes.update(genes=(n_genes,), expression=(n, n_genes), features=(n, z["features"].size // n))
    wrong = []
    for name, shape in shapes.items():
        array = z.get(name, np.empty(shape, str))
        numbers = name not in ("features", "expression") or array.dtype.kind in "fiu"
        if array.shape != shape or not array.size or not numbers:
            wrong.append(f"{name} are {array.dtype} {array.shape}")
    if wrong:
        raise InputError(f"{path}: {few(wrong)}; wanted are {WANTED}, n {n} and G {n_genes}")
    return z


def as_logarithms(y, has_y, scale, path):
    """Expression as it is learned; says which scale it was taken to have."""
    low, high = y[has_y].min(initial=0), y[has_y].max(initial=0)
    if scale == "linear" and low < 0:
        raise InputError(f"{path}: --scale linear, but expression has {low:g}: it is at least 0")
    hint = "" if scale else " (--scale to say otherwise)"
    if scale is None:
        scale = "log" if low < 0 or high < LOG_BELOW else "linear"
    words = {
        "log": "logarithms, as it is",
        "linear": "linear FPKM-UQ, learned as log10(1 + a)",
    }
    print(f"expression from {low:g} to {high:g}: taken as {words[scale]}{hint}")
    return y if scale == "log" else he2rna.log_expression(y)


# ----- Shares -------------------------------------------------------------------------------------


def shares_of(o, study):
    """{name: share of the patients in A} that leave both hospitals enough; --ratios must."""
    if study.hospital is not None:
        if o.ratios:
            given = ",".join(map(str, o.ratios))
            raise InputError(f"--ratios {given}: not where {o.study} says each hospital")
        n = len(set(study.patients[~study.in_b]))
        if n < o.folds:
            raise InputError(
                f"{o.study}: hospital A has {n} patients with expression; --folds {o.folds} needs "
                "as many"
            )
        return {"given": None}
    _, first = np.unique(study.patients, return_index=True)
    high = study.high[first]
    shares, short = {}, []
    for share in o.ratios or MSI_SHARES:
        in_a = he2rna.hospital_a(high, share, np.random.default_rng(0))
        n_high, n_others = (high & ~in_a).sum(), (~high & ~in_a).sum()
        if min(n_high, n_others, in_a.sum()) < o.folds:
            short.append(f"{share} in A leaves B {n_high} MSI-H and {n_others} other patients")
        else:
            shares[str(share)] = share
    text = f"{few(short)}; --folds {o.folds} needs as many of each (and as many patients in A)"
    if short and (o.ratios or not shares):
        mend = f"--ratios {','.join(shares)} would work" if shares else "more patients are needed"
        raise InputError(f"{o.study}: {text}: {mend}")
    if short:
        print(f"left out: {text}")
    return shares
