"""lab.exchange.gdc"""

import gzip
import hashlib
import re
import zlib
from pathlib import Path

import numpy as np

import he2rna
from lab.cohort.expression import parse_row
from lab.cohort.samples import SAMPLE_TYPES
from lab.files import InputError, few, read_rows

FPKM_UQ = re.compile(
    r"(\.FPKM-UQ\.txt|_star_gene_counts\.tsv)(\.gz)?$"
)  # GDC's files of it: to release 31, from 32


UQ_COLUMN = "fpkm_uq_unstranded"


UQ_GENES = 19029  # protein-coding genes on autosomes, by which GDC divides FPKM-UQ since release 32: says its page
#                              "mRNA Analysis Pipeline". The upper quartile of a file's positive values is near 1e5 before,


UQ_BORDER = (
    1000  # 5 since: between them                                                        [ours]
)


UQ_LEAST = (
    1000  # positive values that tell it                                                 [ours]
)


SLIDE_BARCODE = re.compile(
    r"(TCGA-\w\w-\w{4})-(\d\d)([A-Z])-\d\d-(DX|TS|BS|MS)"
)  # patient, type, vial, kind


FROZEN = (
    "TS",
    "BS",
    "MS",
)  # slides of the frozen block, its top, bottom or middle; DX: diagnostic, FFPE, the paper's
#                              choice [HE2RNA Methods, TCGA Pan-Cancer Dataset]; HistCode: frozen [HistCode Methods]


# The GDC's downloads: a folder of one file for each sample; whose it is stands in a sample sheet alone.
def read_sheet(folder, path=None):
    """(rows of a GDC sample sheet as dicts of file, project, patient, barcode, sample, sample_type; its path); by default
    the folder's only one. Columns are named as by the portal or by R (File.Name)."""
    there = [Path(path)] if path else sorted(Path(folder).glob("gdc_sample_sheet*.tsv"))
    if len(there) != 1:
        raise InputError(
            f"{folder}: {len(there) or 'no'} gdc_sample_sheet*.tsv there: name the one with --sheet FILE (GDC "
            "portal, cart, Sample Sheet)"
        )
    path, (header, lines) = there[0], read_rows(there[0])
    at = {re.sub(r"[\W_]+", " ", c).lower(): j for j, c in enumerate(header)}
    if {"id", "filename", "md5"} <= set(at):
        raise InputError(
            f"{path} is a manifest, which has no barcodes: download the Sample Sheet of the same cart (GDC "
            "portal) for --sheet; expression --manifest checks files against this one"
        )
    wanted = dict(file="file name", project="project id", patient="case id", barcode="sample id")
    lost = [c for c in wanted.values() if c not in at]
    if lost:
        raise InputError(
            f"{path}: no column {', '.join(lost)}; it has {few(header)[:80] or 'nothing'}: wanted the Sample "
            "Sheet of a cart (GDC portal)"
        )
    odd = next((i for i, row in enumerate(lines) if len(row) != len(header)), None)
    if odd is not None or not lines:
        raise InputError(
            f"{path}: "
            + (
                "no rows"
                if odd is None
                else f"row {odd + 1} has {len(lines[odd])} fields, the "
                f"header {len(header)}: is it whole?"
            )
        )
    rows = [{name: row[at[c]].strip() for name, c in wanted.items()} for row in lines]
    for row, line in zip(rows, lines):
        tcga = row["barcode"].startswith("TCGA-")  # an aliquot's goes on after the sample's 16
        row["sample"] = row["barcode"][:16] if tcga else row["barcode"]
        code = row["sample"][13:15] if tcga else "unknown"  # newer sheets have no Sample Type
        row["sample_type"] = (
            line[at["sample type"]].strip() if "sample type" in at else SAMPLE_TYPES.get(code, code)
        )
    return rows, path


def ungzipped(name):
    return name.removesuffix(".gz")


def gdc_files(folder):
    """{name without .gz: path} of the files of FPKM-UQ in a folder, at any depth; logs and .partial have other names."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder")
    found = {}
    for p in sorted(Path(folder).rglob("*")):
        if FPKM_UQ.search(p.name) and not p.name.startswith(".") and p.is_file():
            if found.setdefault(ungzipped(p.name), p) != p:
                raise InputError(
                    f"{p} is there twice, also as {found[ungzipped(p.name)]}: remove one"
                )
    return found


def read_manifest(path, found):
    """({name: md5}, {name: what is wrong}) of the files of FPKM-UQ in a GDC manifest: each must be found, of its size."""
    header, lines = read_rows(path)
    if not {"filename", "md5", "size"} <= set(header):
        raise InputError(
            f"--manifest {path}: no column filename, md5 or size; it has {few(header) or 'nothing'}"
        )
    odd = next(
        (
            i
            for i, line in enumerate(lines)
            if len(line) != len(header) or not line[header.index("md5")].strip()
        ),
        None,
    )
    if odd is not None:
        raise InputError(
            f"--manifest {path}: row {odd + 2} has no md5, or is not whole: download the manifest again"
        )
    rows = [dict(zip(header, line)) for line in lines]  # the portal's archives: filename id/name
    rows = {
        ungzipped(Path(row["filename"]).name): row
        for row in rows
        if FPKM_UQ.search(row["filename"])
    }
    size = {name: found[name].stat().st_size for name in rows if name in found}
    wrong = {
        name: f"{name}: "
        + (f"{size[name]} bytes, not {row['size']}" if name in size else "not there")
        for name, row in rows.items()
        if str(size.get(name)) != row["size"]
    }
    return {name: row["md5"].strip() for name, row in rows.items()}, wrong


def gene_name(text):
    """An Ensembl id without its version, which differs between GENCODE 22 (to release 31) and 36 (from 32); the copy of a
    gene on Y, ENSGR0000182378.11 in the one and ENSG00000182378.14_PAR_Y in the other, is ENSG00000182378_PAR_Y. [ours]"""
    return re.sub(
        r"^(ENS[A-Z]*\d+)\.\d+", r"\1", re.sub(r"^ENSGR(\d+\.?\d*)$", r"ENSG0\1_PAR_Y", text)
    )


def read_gdc(path, md5=None):
    """(gene model, {column: texts}) of one file of FPKM-UQ; the older format has two columns and no header."""
    data = path.read_bytes()
    if md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{path.name}: its md5 is not the manifest's")
    try:
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise InputError(f"{path.name}: not whole ({e})") from None
    model = (
        lines[0].removeprefix("# gene-model: ")
        if lines and lines[0].startswith("#")
        else "the older format"
    )
    lines = [line for line in lines if line and not line.startswith(("#", "N_"))]
    header = (
        lines.pop(0).split("\t")
        if lines and "_star_gene_counts" in path.name
        else ["gene_id", UQ_COLUMN]
    )
    if not {"gene_id", UQ_COLUMN} <= set(header):
        raise InputError(
            f"{path.name}: no column gene_id or no {UQ_COLUMN}; it has {few(header)[:80]}"
        )
    odd = next((line for line in lines if line.count("\t") != len(header) - 1), None)
    if odd is not None or not lines:
        raise InputError(
            f"{path.name}: "
            + (
                "no gene in it"
                if odd is None
                else f"{odd[:40]!r} is no line of {len(header)} "
                "columns: not whole, or no file of FPKM-UQ"
            )
        )
    fields = "\t".join(lines).split("\t")  # a list a line would take three times as long
    return model, {c: fields[j :: len(header)] for j, c in enumerate(header)}


def gather(files, tick):
    """The files as one table: [(path, sample, md5 or None)] -> a dict of a (n, G) float32, genes, shared (G,) bool, bad
    {row: why}, models {gene model: dict of files, genes}, symbols [(gene, name, biotype)], scaled and newer.

    shared: genes of all gene models there [ours]. FPKM-UQ stays as it is; only where files from before and since release 32
    meet, the newer are brought to the older scale, the paper's (scaled files) [ours]; newer: all are of the newer scale.
    """
    a, genes, places, models, symbols, bad, quartile = (
        None,
        [],
        {},
        {},
        [],
        {},
        np.full(len(files), np.nan),
    )
    for i, (path, sample, md5) in enumerate(files):
        tick()
        try:
            model, column = read_gdc(path, md5)
            ids = tuple(column["gene_id"])
            values = parse_row(column[UQ_COLUMN], ids, sample, path.name)
        except (InputError, OSError) as e:
            bad[i] = f"{path.name}: {e.strerror}" if isinstance(e, OSError) else str(e)
            continue
        if (model, ids) not in places:
            own = {gene_name(g): j for j, g in enumerate(ids)}
            if len(own) < len(ids):
                raise InputError(
                    f"{path}: {len(ids) - len(own)} of its {len(ids):,} genes stand there twice"
                )
            if a is None:
                genes, shared, a = (
                    list(own),
                    np.ones(len(own), bool),
                    np.empty((len(files), len(own)), np.float32),
                )
            first = models.setdefault(model, dict(path=path, genes=set(own), files=0))
            if set(own) != first["genes"]:
                raise InputError(
                    f"{path} has {len(own):,} genes, {first['path']} {len(first['genes']):,}; "
                    f"{len(set(own) ^ first['genes']):,} are not in both, though both are of {model}: one is "
                    "not whole or was changed; download them again"
                )
            places[model, ids] = np.array([own.get(g, 0) for g in genes])
            shared &= [g in own for g in genes]
            if "gene_name" in column and not symbols:
                symbols = list(
                    zip(own, column["gene_name"], column.get("gene_type", [""] * len(ids)))
                )
        a[i] = values[places[model, ids]]
        models[model]["files"] += 1
        if np.count_nonzero(values) >= UQ_LEAST:
            quartile[i] = np.quantile(values[values > 0], 0.75)
    newer = np.flatnonzero(quartile < UQ_BORDER) if (quartile > UQ_BORDER).any() else []
    for i in newer:  # in place: the table may be all of the memory
        a[i] *= UQ_GENES
    return dict(
        a=a,
        genes=genes,
        shared=shared if genes else [],
        bad=bad,
        models=models,
        symbols=symbols,
        scaled=len(newer),
        newer=bool((quartile < UQ_BORDER).any() and not len(newer)),
    )


def print_counts(rows, **columns):
    """How many different patients, samples ... each project has, merged ones first [HE2RNA Table 1]. columns: title=key."""
    groups = {**he2rna.cancers([r["project"] for r in rows]), "all": np.ones(len(rows), bool)}
    print("".join(f"{title:>12}" for title in ("project", *columns)))
    for name, group in groups.items():
        counts = (len({r[key] for r, g in zip(rows, group) if g}) for key in columns.values())
        print(f"{name:>12}" + "".join(f"{n:12,}" for n in counts))
