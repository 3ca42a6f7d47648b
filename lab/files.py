"""lab.files"""

import csv
import gzip
import hashlib
import io
import json
import os
import sys
import threading
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np

TISSUE = dict(
    tissue="stain", tissue_threshold="otsu", min_area=0.0
)  # what tiles whose settings name none have [ours]


def one_line(text):
    """The text with line ends and other control characters, which names in a broken table may have, written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


class InputError(ValueError):
    """Something the user can mend: shown as one line, exit status 2."""

    def __init__(self, text):
        super().__init__(one_line(text))


def reason(error):
    """The first line of what another program's exception says, or its class where it says nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


# Files: atomic, and keyed by the settings that made them
def save_file(path, write):
    """Write a file beside its place with write(open file) and rename it: it is whole or not there. [ours]"""
    path = Path(path)
    if path.exists() and not (
        path.is_file() or path.is_dir()
    ):  # a pipe or device, such as /dev/stdout
        with open(path, "wb") as f:
            return write(f)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(beside, "wb") as f:
            write(f)
        os.replace(beside, path)
    except (OSError, RuntimeError) as e:
        why = (
            e if isinstance(e, OSError) else e.__context__
        )  # torch.save hides a full disk behind its own
        if not isinstance(why, OSError) or why.errno is None:
            raise
        raise OSError(
            why.errno, why.strerror, str(path)
        ) from None  # a full disk names none, others that beside
    finally:
        beside.unlink(missing_ok=True)


def save_json(path, value):
    save_file(path, lambda f: f.write(json.dumps(value, indent=1).encode()))


def save_text(path, lines):
    save_file(path, lambda f: f.write("\n".join(lines).encode()))


def save_csv(path, header, rows):
    """A table, row by row; compressed where the name ends in .gz."""

    def write(f):
        with (
            gzip.GzipFile("", "wb", 6, f, mtime=0)
            if str(path).endswith(".gz")
            else nullcontext(f) as out
        ):
            text = io.TextIOWrapper(
                out, encoding="utf-8", errors="backslashreplace", newline=""
            )  # of names of files
            csv.writer(text, lineterminator="\n").writerows([header])
            csv.writer(text, lineterminator="\n").writerows(rows)
            text.detach()

    save_file(path, write)


def load_json(path):
    """The dict that the file holds, or None when it is not there, not whole or something else."""
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def load_arrays(path):
    """All arrays of an .npz as a dict (no pickles), or None when it is not there or not whole."""
    try:
        with np.load(path, allow_pickle=False) as z:
            return {name: z[name] for name in z.files}
    except Exception:  # zip's, numpy's and the file system's errors share no class
        return None


def whole_arrays(path, **wanted):
    """As load_arrays, of a file that a command before has made. InputError when it is not there or not whole.

    wanted {name: kind of its dtype and a letter for each axis, "fSG"}: arrays it must have; same letter, same length.
    """
    arrays, length = load_arrays(path), {}
    if arrays is None or not all(
        k in arrays
        and arrays[k].dtype.kind == kind
        and arrays[k].ndim == len(axes)
        and all(length.setdefault(*pair) == pair[1] for pair in zip(axes, arrays[k].shape))
        for k, (kind, *axes) in wanted.items()
    ):
        raise InputError(f"{path} is missing or not whole: run the command that made it again")
    return arrays


def unpacked(path):
    """The bytes of a file, unpacked where they are gzip's."""
    data = Path(path).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def read_rows(path):
    """(header, rows) of a table, comma- or tab-separated, plain or .gz; blank lines left out. InputError when it can't be
    read."""
    try:
        data = unpacked(path)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")  # the µ of programs on Windows
        tab = "\t" in text.partition("\n")[0]
        rows = list(filter(None, csv.reader(io.StringIO(text), delimiter="\t" if tab else ",")))
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as e:
        raise InputError(f"{path}: can't be read as a table ({e})") from None
    return [c.strip() for c in rows[0]] if rows else [], rows[1:]


def number(text):
    """The number that the text of a table is, NaN for any other; Python's float takes 1_0 for 10, no table means that."""
    try:
        return float(text.replace("_", "x"))
    except ValueError:
        return np.nan


def within(value, low, high):
    """Whether a value is a number in a range; a whole one where `low` is."""
    return type(value) in ((int,) if type(low) is int else (int, float)) and low <= value <= high


def read_table(path):
    """The csv part of read_expression, row by row, so that a table larger than memory as text still fits."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(
            path, "rt", newline="", encoding="utf-8-sig"
        ) as f:
            reader = csv.reader(f)
            header = next(reader, None)
            if not header or len(header) < 2:
                raise InputError(
                    f"{path}: the first line must be slide,GENE1,GENE2,... separated by commas"
                )
            genes, ids, rows = [g.strip() for g in header[1:]], [], []
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise InputError(
                        f"{path} line {reader.line_num}: {len(row)} fields, the header has {len(header)}"
                    )
                rows.append(parse_row(row[1:], genes, row[0].strip(), path))
                ids.append(row[0].strip())
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path}: not a whole comma-separated table ({e})") from None
    if not rows:
        raise InputError(f"{path}: no rows")
    key = header[0].strip().lower()
    return key if key in ("slide", "sample") else "", ids, genes, np.stack(rows)


def parse_row(text, genes, name, path):
    """(G,) float32 of a row's fields, checked."""
    try:
        a = np.fromiter(
            map(number if "_" in "".join(text) else float, text), np.float64, len(genes)
        )
    except ValueError:
        a = np.array([number(v) for v in text])
    with np.errstate(over="ignore"):  # beyond float32: infinite, and refused
        a = a.astype(np.float32)
    check_row(a, genes, name, path, text)
    return a


def check_row(a, genes, name, path, text=None):
    bad = ~(np.isfinite(a) & (a >= 0))
    if bad.any():
        j = int(bad.argmax())
        raise InputError(
            f"{path}: gene {genes[j]} of {name} is {text[j] if text else a[j]!r}; FPKM-UQ is a number >= 0"
        )


def few(names, n=10):
    """The first n names, and that there are more."""
    return ", ".join(map(str, names[:n])) + (
        f" ... ({len(names)} in all)" if len(names) > n else ""
    )


def digest(*parts):
    """Hash of arrays and lists of names: the same data, the same run."""
    h = hashlib.sha256()
    for part in parts:
        h.update(
            np.ascontiguousarray(part).view(np.uint8)
            if isinstance(part, np.ndarray)
            else json.dumps(part).encode()
        )
    return h.hexdigest()[:16]


def differences(old, new):
    """'tile_um 112.0 -> 150.0, ...' of two dicts of settings; the tiles' settings inside a feature's count as its own."""
    tiles = lambda d: d["tiles"] if isinstance(d.get("tiles"), dict) else {}
    old, new = ({**TISSUE, **d, **tiles(d), "tiles": None} for d in (old, new))
    return ", ".join(f"{k} {old.get(k)} -> {v}" for k, v in new.items() if old.get(k) != v)


def fingerprint(path):
    """Tells one slide file from another without reading it all: size and hash of its first and last 64 KiB."""
    block = 2**16
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            ends = f.read(block)
            f.seek(max(0, size - block))
            return f"{size} bytes, {hashlib.sha256(ends + f.read(block)).hexdigest()[:16]}"
    except OSError as e:
        return f"unreadable ({e.strerror})"  # opening it will say so


def say_error(e):
    why = (
        f"{e.filename}: {e.strerror}" if isinstance(e, OSError) and e.filename and e.strerror else e
    )
    print(one_line(f"error: {why}"), file=sys.stderr)
