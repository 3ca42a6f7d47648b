"""The expression table of a cohort, and the names of its genes."""

import csv
import re
import zlib
from itertools import chain
from pathlib import Path

import numpy as np

from lab.cohort.genes import by_spreadsheets
from lab.cohort.scale import to_linear
from lab.files import (
    InputError,
    Lines,
    few,
    from_cell,
    load_arrays,
    numbers,
    opened,
    read_rows,
    save_csv,
    save_file,
)
from lab.progress import reading
from lab.words import tidy

ENDINGS = (".csv", ".csv.gz", ".npz")
KEYS = ("slide", "slides", "sample", "samples")  # arrays of an .npz that name its rows
GENE_COLUMNS = {  # what GENCODE, BioMart and others call them
    "id": ("gene_id", "ensembl", "ensembl_gene_id", "gene stable id", "id", "entrezgene", "geneid"),
    "symbol": ("symbol", "gene_name", "hgnc_symbol", "gene name", "gene"),
    "biotype": ("biotype", "gene_type", "gene_biotype", "gene type", "type_of_gene", "locus_group"),
}
CODING = ("protein_coding", "protein_coding_gene")  # NCBI writes protein-coding, HGNC the second
GROWTH = 10  # a table whose length nobody knows grows by a tenth  [ours]
ENSEMBL = r"ENS[A-Z]*G\d+"


# ----- Reading ------------------------------------------------------------------------------------


def read_expression(cohort, scale=None, warn=None):
    """(key, ids, genes, a (n, G) float32) of expression.csv, .csv.gz or .npz: linear expression.

    key: 'slide' or 'sample', what its rows are, or '' where it does not say. scale: what the table
    holds, as lab.cohort.scale knows it; None: it must look linear. warn: who hears of what may be
    meant. InputError with gene and row for duplicates and for what is no number >= 0.
    """
    key, ids, genes, a, path = raw_expression(cohort)
    doubt = by_spreadsheets(genes)
    if doubt and warn:
        warn(f"{path}: {doubt}")
    return key, ids, genes, to_linear(a, scale, path, ids, genes)


def raw_expression(cohort):
    """(key, ids, genes, a, path) of the table as it stands, on any scale."""
    path = table_of(Path(cohort))
    key, ids, genes, a = read_npz(path) if path.suffix == ".npz" else read_table(path)
    return key, ids, genes, a, path


def check_name(name, what, seen, path):
    """InputError for a name that can't be one, or that was seen before; now it is seen."""
    if name in seen:
        why = by_spreadsheets([name], "; ") if what == "gene" else ""
        raise InputError(f"{path}: {what} {name!r} stands there twice{why}")
    if not name.isprintable():
        raise InputError(f"{path}: {what} {name!r} has control characters: rename it")
    seen.add(name)


def table_of(cohort):
    """The one expression table of a cohort."""
    paths = [cohort / f"expression{ending}" for ending in ENDINGS]
    paths = [path for path in paths if path.is_file()]
    folder = cohort / "expression"
    if not paths and folder.is_dir():
        raise InputError(
            f"{folder} is a folder: GDC's files become a table with python he2rna.py expression "
            f"{folder} --sheet FILE --out {folder}.npz"
        )
    if not paths:
        raise InputError(
            f"{cohort}: no expression.csv, .csv.gz or .npz (first column slide, then a column per "
            "gene)"
        )
    if len(paths) > 1:
        raise InputError(f"{cohort}: {paths[0].name} and {paths[1].name} are both there; keep one")
    return paths[0]


def read_npz(path):
    """read_expression of arrays expression (n, G), genes (G,) and slide or sample (n,)."""
    z = load_arrays(path) or {}
    key = next((key for key in KEYS if key in z), "")
    parts = [z.get(name, np.zeros(0)) for name in (key, "genes", "expression")]
    shapes = [part.shape for part in parts]
    if [len(shape) for shape in shapes] != [1, 1, 2] or shapes[2] != shapes[0] + shapes[1]:
        has = ", ".join(f"{name} {a.shape}" for name, a in z.items()) or "none that can be read"
        raise InputError(
            f"{path}: wanted arrays expression (n, G), genes (G,) and slide or sample (n,); it has "
            f"{has} (object arrays are pickles and not read: save names as str)"
        )
    a = parts[2]
    if a.dtype.kind not in "fiu":
        raise InputError(f"{path}: expression is {a.dtype}, not numbers")
    if not a.size:
        raise InputError(f"{path}: no rows")
    if a.dtype == np.float16 and np.isinf(a).any():
        raise InputError(
            f"{path}: expression is float16, which ends at 65,504, and has infinite ones"
        )
    ids, genes = (names_in(part, path) for part in parts[:2])
    for what, names in (("gene", genes), ("row", ids)):
        seen = set()
        for name in names:
            check_name(name, what, seen, path)
    with np.errstate(over="ignore"):  # beyond float32: infinite, and refused
        a = a.astype(np.float32, copy=False)
    for name, row in zip(ids, a, strict=True):
        check_row(row, genes, name, path, row)
    return key.rstrip("s"), ids, genes, a


def names_in(array, path):
    """Names of an array of texts, bytes (as h5py gives them) or whole numbers."""
    if array.dtype.kind not in "USiu":
        raise InputError(f"{path}: names are {array.dtype}, not texts")
    try:
        names = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: names are bytes, but no text in UTF-8 ({e})") from None
    return [name_of(name) for name in names.tolist()]


def name_of(text):
    """A name as it is kept: tidy, and without the marks of bytes that were made a text, b'CD3D'."""
    return re.sub(r"^b(['\"])(.*)\1$", r"\2", tidy(text))


def read_table(path):
    """read_expression of a csv, row by row: what stands in memory is the table of numbers."""
    ids, a = [], np.empty((0, 0), np.float32)
    try:
        with opened(path, reading(path)) as f:
            lines = Lines(f, "utf-8-sig", newline="")
            header = [name_of(from_cell(name)) for name in next(csv.reader(lines), [])]
            if len(header) < 2:
                raise InputError(
                    f"{path}: the first line must be slide,GENE1,GENE2,... separated by commas"
                )
            genes = header[1:]
            seen = {"gene": set(), "row": set()}
            for name in genes:
                check_name(name, "gene", seen["gene"], path)
            for name, values in rows_of(lines, genes, path):
                check_name(name, "row", seen["row"], path)
                if len(ids) == len(a):
                    a.resize((len(a) + 64 + len(a) // GROWTH, len(genes)), refcheck=False)
                a[len(ids)] = values
                ids.append(name)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path}: not a whole comma-separated table ({e})") from None
    if not ids:
        raise InputError(f"{path}: no rows")
    a.resize((len(ids), len(genes)), refcheck=False)
    key = header[0].lower()
    return key if key in KEYS[::2] else "", ids, genes, a


def rows_of(lines, genes, path):
    """Yield (name, values (G,) float32) of the rows of a table; one with quotes may have lines."""
    for line in lines:
        name, _, rest = line.partition(",")
        values = plain_values(rest, len(genes)) if '"' not in line else None
        if values is None:
            row = next(csv.reader(chain([line], lines)))
            if not row:
                continue
            if len(row) != len(genes) + 1:
                raise InputError(
                    f"{path} line {lines.number}: {len(row)} fields, the header has "
                    f"{len(genes) + 1}"
                )
            name = row[0]
            values = parse_row(row[1:], genes, name_of(from_cell(name)), path)
        yield name_of(from_cell(name)), values


def plain_values(text, n):
    """(n,) float32 of n plain numbers between commas; None of any other text."""
    try:
        values = np.fromstring(text.rstrip("\r\n") + ",0", np.float64, sep=",")  # 0: all was read
    except ValueError:
        return None
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    return values[:-1] if len(values) == n + 1 and np.isfinite(values).all() else None


def parse_row(texts, genes, name, path, least=-np.inf):
    """(G,) float32 of a row's texts, checked to be numbers from `least` on."""
    with np.errstate(over="ignore"):  # beyond float32: infinite, and refused
        a = numbers(texts).astype(np.float32)
    check_row(a, genes, name, path, texts, least)
    return a


def check_row(a, genes, name, path, said, least=-np.inf):
    """InputError for what is no number from `least` on, as the file said it."""
    bad = ~((a >= least) & (a < np.inf))
    if bad.any():
        j = int(bad.argmax())
        raise InputError(
            f"{path}: gene {genes[j]} of {name} is {str(said[j])!r}; expression is a number >= 0"
        )


def rows_told(cohort):
    """{row: (patient, sample type)}, as he2rna.py expression tells beside the table it writes."""
    path = Path(cohort) / "expression_samples.csv"
    if not path.is_file():
        return {}
    header, rows = read_rows(path, even=True)
    wanted = ("sample", "patient", "sample_type")
    if not set(wanted) <= set(header):
        raise InputError(f"{path}: wanted columns {', '.join(wanted)}; it has {few(header)}")
    sample, *told = (header.index(column) for column in wanted)
    return {row[sample]: tuple(row[place] for place in told) for row in rows}


# ----- Writing ------------------------------------------------------------------------------------


def save_expression(path, key, ids, genes, rows):
    """What read_expression reads, as .npz, .csv or .csv.gz by the path's ending.

    rows: (G,) of each of the ids, one after the other.
    """
    if Path(path).suffix != ".npz":
        return save_csv(path, (key, *genes), ((i, *row) for i, row in zip(ids, rows, strict=True)))
    a = np.empty((len(ids), len(genes)), np.float32)
    for i, row in enumerate(rows):
        a[i] = row
    arrays = {key: np.array(ids), "genes": np.array(genes), "expression": a}
    save_file(path, lambda f: np.savez_compressed(f, **arrays))


# ----- Names of genes -----------------------------------------------------------------------------


def read_gene_table(path):
    """({id without version: symbol}, names that are protein-coding) of a csv or tsv.

    It has a column for the id and for the symbol, and perhaps for the biotype (GENE_COLUMNS): the
    second is None without it.
    """
    header, rows = read_rows(path)
    names = [name.lower() for name in header]
    at = {}
    for what, options in GENE_COLUMNS.items():
        at[what] = next((names.index(name) for name in options if name in names), None)
    if len(at) - list(at.values()).count(None) < 2:
        raise InputError(
            f"--gene-table {path}: wanted two of the columns gene_id, symbol and biotype; it has "
            f"{few(header)}"
        )
    symbols, coding = {}, set()
    for row in rows:
        if len(row) != len(header):
            continue
        fields = {what: row[j].strip() if j is not None else "" for what, j in at.items()}
        gene = fields["id"].split(".")[0]  # without the version
        if gene and fields["symbol"]:
            symbols[gene] = fields["symbol"]
        if re.sub(r"[\W_]+", "_", fields["biotype"].lower()) in CODING:
            coding |= {gene, fields["symbol"]}
    return symbols, coding if at["biotype"] is not None else None


def as_symbols(genes, symbols):
    """Names as gene sets use them: symbols of Ensembl ids -> (names, a line on what is lost)."""
    names, lost = [], []
    for gene in genes:
        found = re.match(ENSEMBL, gene)
        name = found.group() if found else gene  # without the version
        if found and name not in symbols:
            lost.append(gene)
        names.append(symbols.get(name, name))
    said = []
    if lost:
        said.append(
            f"{len(lost):,} of {len(genes):,} genes have no symbol ({few(lost, 3)}) and count only "
            "in sets of Ensembl ids: give --gene-table"
        )
    twice = len(names) - len(set(names))
    if twice:
        said.append(f"{twice:,} genes share a name with another")
    made = by_spreadsheets(names)
    if made:
        said.append(made)
    return names, "; ".join(said)
