"""The GDC's downloads: files of FPKM-UQ, the sheet that says whose they are, the manifest.

Two formats: to release 31 *.FPKM-UQ.txt.gz, two columns without a header; since release 32
*_star_gene_counts.tsv, with a gene model, a header and several columns.
"""

import gzip
import hashlib
import re
import zlib
from pathlib import Path

import numpy as np

import he2rna
from lab.cohort.expression import parse_row
from lab.cohort.samples import SAMPLE_TYPES
from lab.files import InputError, few, read_rows, unpacked

FPKM_UQ = re.compile(r"(\.FPKM-UQ\.txt|_star_gene_counts\.tsv)(\.gz)?$")
UQ_COLUMN = "fpkm_uq_unstranded"
UQ_GENES = 19029  # protein-coding genes on autosomes; since release 32 the GDC divides by their
# number, says its page "mRNA Analysis Pipeline"
UQ_BORDER = 1000  # upper quartiles are near 1e5 before release 32, near 5 since [ours]
UQ_LEAST = 1000  # positive values that an upper quartile needs, to tell [ours]
COLUMNS = {
    "file": "file name",
    "project": "project id",
    "patient": "case id",
    "barcode": "sample id",
}
TODAY = ("tissue type", "tumor descriptor", "specimen type")  # for the older column sample type
DESCRIPTORS = {  # of tumours: the sample types of before, of solid tissue and of blood or marrow
    "primary": ("Primary Tumor", "Primary Blood Derived Cancer"),
    "recurrence": ("Recurrent Tumor", "Recurrent Blood Derived Cancer"),
    "metastatic": ("Metastatic", ""),
    "new primary": ("Additional - New Primary", ""),
}
SOLID = ("solid tissue", "unknown", "not reported", "")  # specimens
FLUIDS = {"marrow": "Bone Marrow", "blood": "Peripheral Blood"}
NORMALS = {"Bone Marrow": "Bone Marrow Normal", "Peripheral Blood": "Blood Derived Normal"}


def ungzipped(name):
    return name.removesuffix(".gz")


def gdc_files(folder):
    """{name without .gz: path} of the files of FPKM-UQ in a folder, at any depth."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder")
    found = {}
    for p in sorted(Path(folder).rglob("*")):
        if FPKM_UQ.search(p.name) and not p.name.startswith(".") and p.is_file():
            first = found.setdefault(ungzipped(p.name), p)
            if first != p:
                raise InputError(f"{p} is there twice, also as {first}: remove one")
    return found


def read_sheet(folder, path=None):
    """(rows of a GDC sample sheet, its path); by default the folder's only one.

    A row: file, project, patient, barcode, sample, sample_type, and why it is of no one sample, or
    ''. Columns are named as by the portal or by R (File.Name).
    """
    there = [Path(path)] if path else sorted(Path(folder).glob("gdc_sample_sheet*.tsv"))
    if len(there) != 1:
        raise InputError(
            f"{folder}: {len(there) or 'no'} gdc_sample_sheet*.tsv there: name the one with "
            "--sheet FILE (GDC portal, cart, Sample Sheet)"
        )
    path = there[0]
    header, _ = read_rows(path)
    names = [re.sub(r"[\W_]+", " ", column).lower() for column in header]
    lost = [column for column in COLUMNS.values() if column not in names]
    if lost:
        raise InputError(
            f"{path}: no column {', '.join(lost)}; it has {few(header)[:80] or 'nothing'}: wanted "
            "is the Sample Sheet of a cart (GDC portal), no manifest"
        )
    _, lines = read_rows(path, even=True)
    if not lines:
        raise InputError(f"{path}: no rows")
    columns = (dict(zip(names, map(str.strip, line), strict=True)) for line in lines)
    return [row_of(column) for column in columns], path


def row_of(column):
    """A row of read_sheet from {column of the sheet: text}.

    A pool of samples has several in a cell, between commas. Of one patient and one type it is one
    sample, named A+B; of more it is none. [ours]
    """
    row = {name: column[title] for name, title in COLUMNS.items()}
    types, samples = parts(column.get("sample type", "")), parts(row["barcode"])
    if all(sample.startswith("TCGA-") for sample in samples):  # an aliquot's goes on after these
        types = types or [SAMPLE_TYPES.get(s[13:15], s[13:15]) for s in samples]
        samples = [sample[:16] for sample in samples]
    different = {"patients": parts(row["patient"]), "projects": parts(row["project"])}
    different["sample types"] = types or types_of_today(column, len(samples)) or ["unknown"]
    several = [what for what, values in different.items() if len(set(values)) > 1]
    row["why"] = f"files of several {' and '.join(several)}, pooled" if several else ""
    patients, projects, types = (dict.fromkeys(values) for values in different.values())
    row["patient"], row["project"] = ", ".join(patients), ", ".join(projects)
    row["sample_type"] = ", ".join(types)
    row["sample"] = "+".join(dict.fromkeys(samples))
    return row


def parts(text):
    """What stands in a cell, between commas or semicolons."""
    return [part for part in re.split(r"\s*[,;|]\s*", text) if part]


def types_of_today(column, n):
    """The sample types, as they were named before, of n samples in a row of today's sheet."""
    cells = []
    for title in TODAY:
        said = parts(column.get(title, ""))
        cells.append(said if len(said) == n else [column.get(title, "")] * n)
    return [type_of(*words) for words in zip(*cells, strict=True) if any(words)]


def type_of(tissue, descriptor, specimen):
    """The sample type that today's three columns say: Tumor, Primary, Solid Tissue is a Primary
    Tumor. Cell lines, organoids and what nobody reported stay in their own words.
    """
    kind, where = tissue.lower(), specimen.lower()
    fluid = next((name for word, name in FLUIDS.items() if word in where), "")
    if kind == "normal" and where in SOLID:
        return "Solid Tissue Normal"
    if kind == "normal":
        return NORMALS.get(fluid, f"{specimen} Normal")
    in_tissue, in_blood = DESCRIPTORS.get(descriptor.lower(), ("", ""))
    if kind == "tumor" and where in SOLID and in_tissue:
        return in_tissue
    if kind == "tumor" and fluid and in_blood:
        return f"{in_blood} - {fluid}"
    return " / ".join(filter(None, (tissue, descriptor, specimen)))


def read_manifest(path, found):
    """({name: md5}, {name: what is wrong}) of a manifest: each file must be found, of its size."""
    header, lines = read_rows(path, even=True)
    if not {"filename", "md5", "size"} <= set(header):
        raise InputError(
            f"--manifest {path}: no column filename, md5 or size; it has {few(header)}"
        )
    md5, wrong = {}, {}
    for i, line in enumerate(lines):
        row = dict(zip(header, map(str.strip, line), strict=True))
        name = ungzipped(Path(row["filename"]).name)  # in the portal's archives: id/name
        if not row["md5"]:
            raise InputError(f"--manifest {path}: row {i + 2} has no md5: download it again")
        if not FPKM_UQ.search(row["filename"]):
            continue
        md5[name] = row["md5"]
        size = str(found[name].stat().st_size) if name in found else "no"
        if size != row["size"]:
            wrong[name] = f"{name}: {size} bytes there, not {row['size']}"
    return md5, wrong


def gene_name(text):
    """An Ensembl id without its version, which differs between the GDC's releases. [ours]

    The copy of a gene on Y, ENSGR0000182378.11 to release 31 and ENSG00000182378.14_PAR_Y since,
    is ENSG00000182378_PAR_Y.
    """
    text = re.sub(r"^ENSGR(\d+\.?\d*)$", r"ENSG0\1_PAR_Y", text)
    return re.sub(r"^(ENS[A-Z]*\d+)\.\d+", r"\1", text)


def read_gdc(path, md5=None):
    """(gene model, {column: texts}) of one file of FPKM-UQ."""
    if md5 and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{path.name}: its md5 is not the manifest's")
    try:
        text = unpacked(path).decode()
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise InputError(f"{path.name}: not whole ({e})") from None
    first, _, _ = text.partition("\n")
    model = first.removeprefix("# gene-model: ") if first.startswith("#") else "the older format"
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "N_"))]
    header = ["gene_id", UQ_COLUMN]
    if lines and "_star_gene_counts" in path.name:
        header = lines.pop(0).split("\t")
    if not {"gene_id", UQ_COLUMN} <= set(header):
        has = few(header)[:80]
        raise InputError(f"{path.name}: no column gene_id or no {UQ_COLUMN}; it has {has}")
    odd = [line for line in lines if line.count("\t") != len(header) - 1]
    if odd or not lines:
        what = repr(odd[0][:40]) if odd else "nothing"
        raise InputError(
            f"{path.name}: {what} in place of lines of {len(header)} columns: not whole"
        )
    fields = "\t".join(lines).split("\t")  # a list a line would take three times as long
    return model, {c: fields[j :: len(header)] for j, c in enumerate(header)}


class Gathered:
    """Files of FPKM-UQ as one table, a row each.

    FPKM-UQ stays as it is; only where files from before and since release 32 meet, the newer are
    brought to the scale of the older, the paper's. [ours]
    """

    def __init__(self, n_files):
        self.n_files = n_files
        self.a = None  # (n, genes) float32
        self.genes = []  # of the first file
        self.shared = np.empty(0, bool)  # those that all gene models have [ours]
        self.models = {}  # {gene model: its first file, genes and number of files}
        self.places = {}  # {(gene model, ids in their order): where `genes` stand}
        self.symbols = []  # (gene, symbol, biotype), of a newer file
        self.quartile = np.full(n_files, np.nan)

    def add(self, i, path, sample, md5):
        """Read a file into row i."""
        model, columns = read_gdc(path, md5)
        ids = tuple(columns["gene_id"])
        values = parse_row(columns[UQ_COLUMN], ids, sample, path.name, least=0)
        if (model, ids) not in self.places:
            self.add_order(path, model, ids, columns)
        self.a[i] = values[self.places[model, ids]]
        self.models[model]["files"] += 1
        positive = values[values > 0]
        if len(positive) >= UQ_LEAST:
            self.quartile[i] = np.quantile(positive, 0.75)

    def add_order(self, path, model, ids, columns):
        """A new order of genes, of a gene model that may be new."""
        own = {gene_name(g): j for j, g in enumerate(ids)}
        if len(own) < len(ids):
            twice = len(ids) - len(own)
            raise InputError(f"{path}: {twice} of its {len(ids):,} genes stand there twice")
        if self.a is None:
            self.genes, self.shared = list(own), np.ones(len(own), bool)
            self.a = np.empty((self.n_files, len(own)), np.float32)
        first = self.models.setdefault(model, {"path": path, "genes": own.keys(), "files": 0})
        differ = own.keys() ^ first["genes"]
        if differ:
            raise InputError(
                f"{path} has {len(own):,} genes, {first['path']} {len(first['genes']):,}; "
                f"{len(differ):,} are not in both, though both are of {model}: one is not whole or "
                "was changed; download them again"
            )
        self.places[model, ids] = np.array([own.get(g, 0) for g in self.genes])
        self.shared &= [g in own for g in self.genes]
        if "gene_name" in columns and not self.symbols:
            biotypes = columns.get("gene_type", [""] * len(ids))
            self.symbols = list(zip(own, columns["gene_name"], biotypes, strict=True))

    def to_one_scale(self):
        """(files that were multiplied to the older scale, whether all are of the newer one)."""
        newer = np.flatnonzero(self.quartile < UQ_BORDER)
        if not (self.quartile > UQ_BORDER).any():
            return 0, newer.size > 0
        for i in newer:  # in place: the table may be all of the memory
            self.a[i] *= UQ_GENES
        return newer.size, False


def print_counts(rows, **columns):
    """How many different patients, samples ... each project has, merged ones first.

    columns: title=key. [HE2RNA Table 1]
    """
    groups = he2rna.cancers([r["project"] for r in rows])
    print("".join(f"{title:>12}" for title in ("project", *columns)))
    for name, group in (*groups.items(), ("all", np.ones(len(rows), bool))):
        counts = [
            len({r[key] for r, own in zip(rows, group, strict=True) if own})
            for key in columns.values()
        ]
        print(f"{name:>12}" + "".join(f"{n:12,}" for n in counts))
