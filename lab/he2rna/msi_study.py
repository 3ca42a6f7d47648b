"""What the MSI study learns from: a cohort folder, or an .npz of arrays, read and checked."""

from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

import he2rna
from lab.cohort.check import check_patients, read_checked
from lab.cohort.encoding import make_features
from lab.cohort.features import features_of, load_features, provenance
from lab.cohort.labels import counted_words
from lab.cohort.samples import read_samples, refuse_barcodes, select
from lab.cohort.scale import looks_logged, to_linear
from lab.files import InputError, few, load_arrays
from lab.findings import Findings
from lab.processes import share_out
from lab.progress import counted, report_failures, say_left_out
from lab.words import is_unknown, same, tidy

MSI_SHARES = tuple(map(Fraction, ("1/6", "1/3", "1/2", "2/3", "3/4", "5/6")))  # [HE2RNA Fig. 5b]
LABELS = {"msi-h": "MSI-H", "msi-l": "MSI-L", "mss": "MSS"}
FEW_TILES = 100  # the authors leave out slides of fewer [HE2RNA code]
ARRAYS = ("features", "expression", "genes", "patients", "msi")


@dataclass
class Study:
    """The slides of a study, a row each."""

    x: np.ndarray | None  # (S, D) mean feature
    y: np.ndarray  # (S, G) log expression, NaN where a slide of hospital B has none
    labels: np.ndarray  # (S,) MSI-H, MSI-L, MSS or empty
    patients: np.ndarray  # (S,)
    projects: np.ndarray  # (S,)
    hospital: np.ndarray | None  # (S,) A or B; None: to be drawn
    features: object  # what they are, for the run's settings
    dropped: int = 0  # slides that lack what their hospital needs
    silent: str = ""  # which labels say nothing
    failed: dict = field(default_factory=dict)  # {slide: why it has no features}
    line: str = ""  # how many patients there are
    scale: str = "linear"  # what the expression was taken as

    @property
    def high(self):
        return self.labels == "MSI-H"

    @property
    def has_y(self):
        return ~np.isnan(self.y).all(1)

    @property
    def in_b(self):
        """(S,) whether a slide may be hospital B's."""
        return np.full(len(self.y), True) if self.hospital is None else self.hospital == "B"

    def take(self, rows):
        """The study of some rows."""
        arrays = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **{k: v[rows] for k, v in arrays.items()})

    def needed(self):
        """(S,) what has what its hospital needs: expression in A, a label in B, both if drawn."""
        if self.hospital is None:
            return (self.labels != "") & self.has_y
        odd = np.isin(self.hospital, ("A", "B"), invert=True)
        if odd.any():
            names = few(sorted(set(self.hospital[odd])))
            raise InputError(f"hospital: {names} in {odd.sum()} rows: write A or B")
        return np.where(self.hospital == "A", self.has_y, self.labels != "")


def read_study(o):
    """The study of o.study, checked; says how many patients it has."""
    if not Path(o.study).exists():
        raise InputError(f"{o.study}: no such cohort folder or .npz file")
    study = study_of_cohort(o) if Path(o.study).is_dir() else study_of_file(o)
    whole, study = study, without_low(study, o)
    label_of = labels_in_b(study, o)
    count = Counter(label_of.values())
    dropped = sorted(set(whole.patients.tolist()) - set(study.patients.tolist()))
    without = f", {len(dropped)} patients MSI-L" if "msi-l" in o.code else ""
    study.line = (
        f"{len(set(study.patients))} patients, {len(study.x)} slides; {len(label_of)} may be in "
        f"hospital B: {count['MSI-H']} MSI-H; negative: MSI-L {count['MSI-L']}, MSS "
        f"{count['MSS']}; dropped: {study.dropped} slides without the label or expression that "
        f"they need{study.silent}{without}"
    )
    print(study.line)
    return study


def without_low(study, o):
    """The study without MSI-L in hospital B, where the authors' code is followed."""
    low = study.in_b & (study.labels == "MSI-L")
    return study.take(~low) if "msi-l" in o.code else study


def labels_in_b(study, o):
    """{patient: label} of those who may be in hospital B.

    InputError where slides of a patient differ, or too few patients have a label.
    """
    in_b = study.in_b
    label_of = one_each(study.patients[in_b], study.labels[in_b], "labelled")
    if study.hospital is not None:
        one_each(study.patients, study.hospital, "of hospital")
    high = sum(label == "MSI-H" for label in label_of.values())
    if min(high, len(label_of) - high) < o.folds:
        raise InputError(
            f"{o.study}: {high} MSI-H and {len(label_of) - high} other patients for hospital B; "
            f"--folds {o.folds} needs as many of each"
        )
    return label_of


def one_each(patients, kinds, what):
    """{patient: kind}; InputError where slides of a patient differ."""
    pairs = sorted(set(zip(patients.tolist(), kinds.tolist(), strict=True)))
    kind_of = dict(pairs)
    twice = sorted({p for p, kind in pairs if kind != kind_of[p]})
    if twice:
        raise InputError(
            f"{len(twice)} of {len(kind_of)} patients are {what} two kinds: {few(twice)}; a "
            "patient's slides must agree"
        )
    return kind_of


def msi_labels(labels, where):
    """(S,) 'MSI-H', 'MSI-L', 'MSS' or '' of each label, in any case; and which say nothing."""
    silent = np.array([is_unknown(label) for label in labels])
    odd = [x for x, no in zip(labels, silent, strict=True) if not no and same(x) not in LABELS]
    if odd:
        raise InputError(
            f"{where}: label {few(sorted(set(odd)))}: wanted is MSI-H, MSI-L, MSS, Indeterminate "
            "or none"
        )
    said = f" (labels that say nothing: {counted_words(labels, silent)})" if silent.any() else ""
    return np.array([LABELS.get(same(label), "") for label in labels]), said


# ----- A cohort folder ----------------------------------------------------------------------------


def study_of_cohort(o):
    """The slides of a cohort that have what their hospital needs."""
    cohort = Path(o.study)
    samples, wrong_type = select(read_samples(cohort), o.types, o.project)
    if "msi" not in samples[0]:
        raise InputError(f"{cohort / 'samples.csv'}: no column msi; it has {few(list(samples[0]))}")
    column = {name: np.array([s[name] for s in samples]) for name in samples[0]}
    found = Findings()
    labels = found.of(msi_labels, column["msi"].tolist(), cohort / "samples.csv")
    genes, a, (joined, rows, unmatched) = read_checked(found, cohort, samples, o)
    say_left_out({**wrong_type, **unmatched})
    y = np.full((len(samples), len(genes)), np.nan, np.float32)
    at = {slide: i for i, slide in enumerate(column["slide"])}
    for s, row in zip(joined, rows, strict=True):
        y[at[s["slide"]]] = he2rna.log_expression(a[row])
    study = Study(
        x=None,
        y=y,
        labels=labels[0],
        silent=labels[1],
        patients=column["patient"],
        projects=column["project"],
        hospital=np.char.upper(column["hospital"]) if "hospital" in column else None,
        features=None,
        scale=o.scale or "linear",
    )
    needed = study.needed()
    labels_in_b(without_low(study.take(needed), o), o)  # before features are made
    mean, failed = mean_features(cohort, o, column["slide"][needed].tolist())
    features = provenance(cohort, o, list(mean))
    features.pop("supertiles")
    return replace(
        study.take([at[slide] for slide in mean]),
        x=np.stack(list(mean.values())).astype(np.float32),
        features=features,
        dropped=int((~needed).sum()),
        failed=failed,
    )


def mean_features(cohort, o, slides):
    """({slide: (D,) the mean of its tiles}, {slide: why it has none})."""
    failed = {} if o.features else share_out(make_features, cohort, slides, o)
    mean, under = {}, []
    for slide in counted("mean tiles", [s for s in slides if s not in failed], "slides"):
        try:
            features, _ = load_features(cohort, features_of(o), slide)
            if "few-tiles" in o.code and len(features) < FEW_TILES:
                under.append(slide)
            else:
                mean[slide] = features.mean(0, dtype=np.float64)
        except InputError as e:
            failed[slide] = str(e)
    say_left_out({f"slides of under {FEW_TILES} tiles": under})
    if under and not mean:
        raise InputError(f"{cohort}: --code few-tiles leaves no slide: leave it out")
    widths = sorted({len(v) for v in mean.values()})
    if len(widths) != 1:
        report_failures(failed, len(slides))
        raise InputError(
            f"{cohort}: of {len(slides)} slides with what their hospital needs {len(mean)} have "
            f"features, of {few(widths) or 'no'} numbers: wanted are those of one encoder"
        )
    return mean, failed


# ----- A file -------------------------------------------------------------------------------------


def study_of_file(o):
    """The rows of an .npz that have what their hospital needs."""
    path = Path(o.study)
    z = checked_arrays(path)
    labels, silent = msi_labels(z["msi"].astype(str).tolist(), path)
    study = Study(
        x=z["features"].astype(np.float32),
        y=z["expression"].astype(np.float32),
        labels=labels,
        silent=silent,
        patients=np.array([tidy(name) for name in z["patients"].astype(str)]),
        projects=np.full(len(z["msi"]), "all"),
        hospital=np.char.upper(z["hospital"].astype(str)) if "hospital" in z else None,
        features=z["features"].shape[1],
    )
    check_patients_of(path, study.patients)
    needed = study.needed()
    study = replace(study.take(needed), dropped=int((~needed).sum()))
    has_y = study.has_y
    bad = ~np.isfinite(study.x).all(1) | (has_y & ~np.isfinite(study.y).all(1))
    if bad.any():
        raise InputError(
            f"{path}: features or expression of {bad.sum()} rows are NaN or infinite, the first "
            f"of patient {study.patients[bad.argmax()]}"
        )
    y = study.y[has_y]
    said = f"expression from {y.min(initial=0):g} to {y.max(initial=0):g}"
    if o.scale is None and (y.min(initial=0) < 0 or looks_logged(y)[0].all()):
        study.scale = "logarithms as they are"
    else:
        y = to_linear(y, o.scale, path, study.patients[has_y], z["genes"])
        study.y[has_y] = he2rna.log_expression(y)
        study.scale = f"{o.scale or 'linear'}, learned as log10(1 + a)"
    print(f"{said}: taken as {study.scale}")
    return study


def check_patients_of(path, patients):
    """As those of samples.csv: words for nobody are refused, and what may be one is named."""
    rows = [{"slide": str(i), "patient": name} for i, name in enumerate(patients.tolist())]
    nobody = sorted({name for name in patients.tolist() if is_unknown(name)})
    found = Findings()
    if nobody:
        found.refuse(f"{path}: patients {few(nobody)} are no patients: leave their rows out")
    refuse_barcodes(found, path, rows)
    check_patients(found, path, rows)
    found.tell(path)


def checked_arrays(path):
    """The arrays of an .npz, of the shapes and kinds wanted."""
    z = load_arrays(path) or {}
    fits = set(ARRAYS) <= z.keys()
    if fits:
        n, n_genes = z["patients"].size, z["genes"].size
        shapes = dict.fromkeys(("patients", "msi", "hospital"), (n,))
        shapes.update(genes=(n_genes,), expression=(n, n_genes))
        shapes["features"] = (n, *z["features"].shape[1:2])
        fits = all(z[name].size and z[name].shape == shapes[name] for name in z.keys() & shapes)
        fits = fits and all(z[name].dtype.kind in "fiu" for name in ("features", "expression"))
    if not fits:
        there = [f"{name} {array.shape} of {array.dtype}" for name, array in z.items()]
        raise InputError(
            f"{path}: wanted are numbers features (n, D) and expression (n, G), names genes (G,), "
            f"patients (n,) and msi (n,); it has {few(there) or 'no array that can be read'}"
        )
    return z


# ----- Shares -------------------------------------------------------------------------------------


def shares_of(o, study):
    """{name: share of the patients in A} that leave both hospitals enough; --ratios must."""
    if study.hospital is not None:
        n = len(set(study.patients[~study.in_b]))
        if o.ratios:
            raise InputError(f"--ratios: not where {o.study} says each patient's hospital")
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
        raise InputError(
            f"{o.study}: {text}; shares that would work: {few(list(shares)) or 'none'}"
        )
    if short:
        print(f"left out: {text}")
    return shares
