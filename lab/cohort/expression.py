"""lab.cohort.expression"""

import re
import zipfile
from pathlib import Path

import numpy as np

from lab.files import (
    InputError,
    check_row,
    few,
    load_arrays,
    read_rows,
    read_table,
    save_csv,
    save_file,
)


def read_expression(cohort):
    """(key, ids, genes, a (n, G) float32) of expression.csv, .csv.gz or .npz; key: 'slide', 'sample' or '' (not said).

    Linear FPKM-UQ. Raises InputError with gene and row on duplicates, negative, non-numeric, infinite or missing values.
    npz: arrays `expression` (n, G), `genes` (G,) and `slide` or `sample` (n,).
    """
    paths = [Path(cohort) / f"expression{e}" for e in (".csv", ".csv.gz", ".npz")]
    paths = [p for p in paths if p.is_file()]
    folder = Path(cohort) / "expression"
    if not paths and folder.is_dir():
        raise InputError(
            f"{folder} is a folder: GDC's files become a table with python he2rna.py expression {folder} "
            f"--sheet FILE --out {folder}.npz"
        )
    if len(paths) != 1:
        raise InputError(
            f"{cohort}: "
            + (
                f"{paths[0].name} and {paths[1].name} are both there; keep one"
                if paths
                else "no expression.csv, .csv.gz or .npz (first column slide, then a column per gene, linear FPKM-UQ)"
            )
        )
    path = paths[0]
    if path.suffix == ".npz":
        z = load_arrays(path) or {}
        key = next((k for k in ("slide", "slides", "sample", "samples") if k in z), None)
        if (
            key is None
            or not {"expression", "genes"} <= set(z)
            or not z[key].ndim == z["genes"].ndim == 1
            or z["expression"].shape != z[key].shape + z["genes"].shape
            or not z["expression"].size
        ):
            shapes = ", ".join(f"{k} {v.shape}" for k, v in z.items()) or "none that can be read"
            raise InputError(
                f"{path}: wanted arrays expression (n, G), genes (G,) and slide or sample (n,); it has "
                f"{shapes} (object arrays are pickles and not read: save names as str)"
            )
        ids, genes = [str(i) for i in z[key]], [str(g) for g in z["genes"]]
        if z["expression"].dtype.kind not in "fiu":
            raise InputError(f"{path}: expression is {z['expression'].dtype}, not numbers")
        with np.errstate(over="ignore"):  # beyond float32: infinite, and refused below
            key, rows = key.rstrip("s"), z["expression"].astype(np.float32, copy=False)
        for i, row in zip(ids, rows):
            check_row(row, genes, i, path)
    else:
        key, ids, genes, rows = read_table(path)
    for what, names in (("gene", genes), ("row", ids)):
        seen = set()
        twice = next((n for n in names if n in seen or seen.add(n)), None)
        if twice is not None:
            raise InputError(f"{path}: {what} {twice!r} stands there twice")
    return key, ids, genes, rows


def save_expression(path, key, ids, genes, rows):
    """What read_expression reads, as .npz, .csv or .csv.gz by the path's ending. rows: (G,) float32 of each of the ids, one
    after the other, so that a table of some GB is not held twice."""

    def write(f):
        with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
            for name, values in ((key, ids), ("genes", genes)):
                with z.open(f"{name}.npy", "w") as part:
                    np.lib.format.write_array(part, np.array(values), allow_pickle=False)
            with z.open("expression.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array_header_1_0(
                    part, dict(descr="<f4", fortran_order=False, shape=(len(ids), len(genes)))
                )
                for row in rows:
                    part.write(row.astype("<f4").tobytes())

    if Path(path).suffix == ".npz":
        save_file(path, write)
    else:
        save_csv(path, (key, *genes), ((i, *row) for i, row in zip(ids, rows)))


def read_gene_table(path):
    """({id without version: symbol}, ids and symbols that are protein-coding, or None) of a csv or tsv with columns for the
    id (gene_id, ensembl), the name (symbol, gene_name) and, if it has one, the biotype (gene_type): GENCODE's or BioMart's
    names."""
    options = dict(
        id=("gene_id", "ensembl", "ensembl_gene_id", "gene stable id", "id"),
        symbol=("symbol", "gene_name", "hgnc_symbol", "gene name", "gene"),
        biotype=("biotype", "gene_type", "gene_biotype", "gene type"),
    )
    header, rows = read_rows(path)
    lower = [c.lower() for c in header]
    column = {
        k: next((lower.index(n) for n in names if n in lower), None) for k, names in options.items()
    }
    if (column["id"] is None and column["symbol"] is None) or (
        column["symbol"] is None and column["biotype"] is None
    ):
        raise InputError(
            f"--gene-table {path}: wanted two of the columns gene_id, symbol and biotype; it has {few(header)}"
        )
    rows = [
        [row[j].strip() if j is not None else "" for j in column.values()]
        for row in rows
        if len(row) == len(header)
    ]
    rows = [
        (i.split(".")[0], symbol, biotype) for i, symbol, biotype in rows
    ]  # without the version
    coding = {name for *names, biotype in rows if biotype == "protein_coding" for name in names}
    return {i: symbol for i, symbol, _ in rows if i and symbol}, coding if column[
        "biotype"
    ] is not None else None


def as_symbols(genes, symbol):
    """Names as gene sets use them: Ensembl ids without version, by the table their symbols. -> (names, a line on what is
    lost)."""
    ids = [re.match(r"(ENS[A-Z]*G\d+)?", g).group(1) for g in genes]
    names = [symbol.get(i or g, i or g) for g, i in zip(genes, ids)]
    lost, twice = (
        [g for g, i in zip(genes, ids) if i and i not in symbol],
        len(names) - len(set(names)),
    )
    said = [
        f"{len(lost):,} of {len(genes):,} genes have no symbol ({few(lost, 3)}) and count only in sets of Ensembl ids: "
        "give --gene-table"
    ] * bool(lost) + [f"{twice:,} genes share a name with another"] * bool(twice)
    return names, "; ".join(said)
