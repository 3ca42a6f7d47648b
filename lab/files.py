"""Files: written whole or not at all, read without running pickles, refused in a line that names
them.
"""

import csv
import gzip
import hashlib
import io
import json
import math
import os
import re
import secrets
import sys
import zlib
from functools import lru_cache
from itertools import chain
from pathlib import Path

from lab.headers import parts_of
from lab.words import composed, tidy

TISSUE = {  # what tiles whose settings name none have                [ours]
    "tissue": "stain",
    "tissue_threshold": "otsu",
    "min_area": 0.0,
}
UNNAMED = {**TISSUE, "force_mpp": False}  # all that is named only where it is not the usual
GZIP = b"\x1f\x8b"
MARKS = "=+-@\t\r＝＋－＠"  # what begins so, and is no number, spreadsheets may run      [OWASP]
FIRST = f"'{MARKS}"
BREAKS = re.compile(r"[;\t\r\n]")  # where a cell begins, too: at ; where commas are decimal
PLAIN, SAFE = (
    re.compile(rf"(^|{BREAKS.pattern}){mark}(?='*[{re.escape(MARKS)}].)", re.S)
    for mark in ("", "'")
)
MARKUP = re.compile(r"(?<!\\)(<(?=[A-Za-z/!?])|\](?=[(\[:])(?!\([\w.-]+\.png\)))")  # but pictures
PACKED, ALWAYS = 100, 2**28  # bytes of numbers in a byte of a file; so many may be there    [ours]
TEXT = 2**26  # bytes that a packed file may hold where all of its text is kept in memory    [ours]
LINE = 2**26  # characters of a line at most; of 60,483 genes it has a million    [ours]
PIECE = 2**20  # bytes that are unpacked at once
ENDS = 2**16  # bytes at each end of a file that tell it from another     [ours]


class InputError(ValueError):
    """Something the user can mend: shown as one line, exit status 2."""

    def __init__(self, text):
        super().__init__(one_line(text))


def one_line(text):
    """The text with line ends and other control characters, as broken tables have, written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def reason(error):
    """What an error of torch, zip or the system says, in its first line; else its name."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def say_error(e):
    """Print an InputError or OSError as one line on stderr."""
    why = e
    if isinstance(e, OSError) and e.filename and e.strerror:
        why = f"{e.filename}: {e.strerror}"
    print(one_line(f"error: {why}"), file=sys.stderr)


# ----- Writing ------------------------------------------------------------------------------------


def save_file(path, write):
    """Write a file beside its place with write(open file), then rename it: it is whole or not
    there.

    What is written is new and its name nobody's guess: no link of another user is followed, and no
    other process writes to it. Who may read it is as the user's umask says.
    """
    path = Path(path)
    if is_device(path):
        with open(path, "wb") as f:
            return write(f)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = half_of(path)
    try:
        with open(beside, "xb") as f:
            write(f)
        os.replace(beside, path)
    except (OSError, RuntimeError) as e:
        cause = e if isinstance(e, OSError) else e.__context__  # torch.save hides a full disk
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None  # it would name `beside`
    finally:
        beside.unlink(missing_ok=True)


def half_of(path):
    """A name beside a path for what is not yet whole, which `sweep` knows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def is_device(path):
    """Whether a path is a pipe or a device, such as /dev/stdout, which no file may replace."""
    if path.is_relative_to("/dev"):  # where stdout goes to a file, it looks like one
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def sweep(folder):
    """Remove the half files of killed runs from a folder that nobody else writes to."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def save_json(path, value, indent=1):
    """indent: None for as short a file as can be."""
    text = json.dumps(value, indent=indent, separators=None if indent else (",", ":"))
    save_file(path, lambda f: f.write(text.encode()))


def save_text(path, lines):
    """Lines of text; of a report (.md) without HTML and links, which names may hold."""
    text = "\n".join(lines)
    if str(path).endswith(".md"):
        text = MARKUP.sub(r"\\\g<0>", text)
    save_file(path, lambda f: f.write(text.encode(errors="backslashreplace")))


def save_csv(path, header, rows):
    """A table, row by row; packed where the name ends in .gz."""

    def write(f):
        packed = gzip.GzipFile("", "wb", 6, f, mtime=0) if str(path).endswith(".gz") else None
        text = io.TextIOWrapper(packed or f, "utf-8", errors="backslashreplace", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(map(as_cell, header))
        table.writerows(map(as_cell, row) for row in rows)
        text.detach()  # f stays open
        if packed:
            packed.close()

    save_file(path, write)


def as_cell(value):
    """What stands in a table's cell: a text that a spreadsheet would run as a formula gets a '.

    A number does not. `from_cell` takes the mark away.
    """
    if not isinstance(value, str) or not (value[:1] in FIRST or BREAKS.search(value)):
        return value
    return PLAIN.sub(r"\1'", value) if math.isnan(number(value)) else value


def from_cell(text):
    """The text that `as_cell` was given."""
    return SAFE.sub(r"\1", text)


# ----- Reading ------------------------------------------------------------------------------------


def load_json(path):
    """The dict that the file holds, or None when it is not there, not whole or something else."""
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def load_arrays(path):
    """All arrays of an .npz as a dict, no pickles; None when it is not there or not whole."""
    try:
        import numpy as np  # here and below, that --help need not wait for it

        with np.load(path, allow_pickle=False) as z:
            size = sum(part.file_size for part in z.zip.infolist())
            return None if is_bomb(size, os.path.getsize(path)) else {n: z[n] for n in z.files}
    except Exception:  # zip's, numpy's and the file system's errors share no class
        return None


def is_bomb(size, packed):
    """Whether numbers of so many bytes are more than what is packed can be meant to hold."""
    return size > ALWAYS + PACKED * packed


def whole_arrays(path, **wanted):
    """As load_arrays, of a file that a command has made; InputError when it is not whole.

    wanted: for each array it must have, the kind of its dtype and a letter for each axis, such as
    "fSG". Axes of one letter have one length.
    """
    arrays = load_arrays(path)
    if arrays is None or not are_there(arrays, wanted):
        raise InputError(f"{path} is missing or not whole: run the command that made it again")
    return arrays


def are_there(arrays, wanted):
    """Whether the arrays are there, of the kinds and axes that `whole_arrays` wants."""
    lengths = {}
    for name, (kind, *axes) in wanted.items():
        a = arrays.get(name)
        if a is None or a.dtype.kind != kind or a.ndim != len(axes):
            return False
        for axis, length in zip(axes, a.shape, strict=True):
            if lengths.setdefault(axis, length) != length:
                return False
    return True


class Unpacking(io.RawIOBase):
    """The bytes of a file, unpacked where they are gzip's; more than can be meant is refused.

    tick(n): hears of n bytes of the file itself that were read. most: what a packed file may hold.
    """

    def __init__(self, file, tick, most):
        self.file, self.tick, self.most = file, tick, most
        self.is_packed = file.peek(2)[:2] == GZIP
        self.stream = gzip.GzipFile(fileobj=file) if self.is_packed else file
        self.seen = self.given = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        n = self.stream.readinto(buffer)
        self.given += n
        if self.is_packed:
            packed = os.fstat(self.file.fileno()).st_size
            refuse_bomb(self.file.name, self.given, packed, self.most)
        if self.file.seekable():  # a pipe doesn't know
            before, self.seen = self.seen, self.file.tell()
            self.tick(self.seen - before)
        return n

    def close(self):
        self.file.close()
        super().close()


def refuse_bomb(path, size, packed, most=math.inf):
    """InputError where so many unpacked bytes are more than a file can be meant to hold."""
    if size > most or is_bomb(size, packed):
        limit = min(most, ALWAYS + PACKED * packed)
        raise InputError(
            f"{path}: its {packed:,} bytes unpack to over {limit:,}, more than is taken for a "
            "table or outlines: if they are meant, give the file unpacked"
        )


def opened(path, tick=lambda n: None, most=math.inf):
    """A file open for reading bytes, as Unpacking gives them."""
    return io.BufferedReader(Unpacking(open(path, "rb"), tick, most), PIECE)


def unpacked(path):
    """The bytes of a text file, unpacked where they are gzip's."""
    with opened(path, most=TEXT) as f:
        return f.read()


class Lines:
    """The lines of a text one by one, and how many they were; csv.Error for one without an end."""

    def __init__(self, f, encoding, newline):
        self.text = io.TextIOWrapper(f, encoding, newline=newline)
        self.number = 0

    def __iter__(self):
        return self

    def __next__(self):
        line = self.text.readline(LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == LINE:
            raise csv.Error(f"line {self.number} has over {LINE:,} characters")
        return line


def read_table(path, take, tick=lambda n: None, most=math.inf):
    """take(header, Rows) of a table: with commas, tabs or semicolons, plain or .gz.

    Where it is not in UTF-8, take is called again, with what programs on Windows write for µ.
    """
    try:
        for encoding in ("utf-8-sig", "cp1252"):
            try:
                with opened(path, tick, most) as f:
                    rows = Rows(Lines(f, encoding, "\n"))
                    header = bare(next(iter(rows), []))
                    return take([one_line(name.strip()) for name in header], rows)
            except UnicodeDecodeError as e:
                why = e
    except (OSError, EOFError, zlib.error, csv.Error) as e:
        why = e
    raise InputError(f"{path}: can't be read as a table ({why})")


class Rows:
    """The rows of a table that are not blank, one by one."""

    def __init__(self, lines):
        self.lines = map(composed, lines)
        first = next(self.lines, "")
        self.mark = delimiter_of(first)
        self.rows = self.of(chain([first], self.lines))

    def of(self, lines):
        return filter(None, csv.reader(lines, delimiter=self.mark))

    def __iter__(self):
        return self.rows

    def rest(self, lines):
        """The rows from some lines on, which were taken."""
        return self.of(chain(lines, self.lines))


def bare(row):
    """The cells of a row without the marks of `as_cell`."""
    return list(map(from_cell, row)) if any("'" in cell for cell in row) else row


def read_rows(path, even=False):
    """(header, rows) of a table as read_table knows them.

    even: a row that is longer or shorter than the header is refused.
    """
    header, rows = read_table(path, lambda header, rows: (header, [*map(bare, rows)]), most=TEXT)
    if even:
        check_even(path, header, rows)
    return header, rows


def check_even(path, header, rows, first=2):
    """InputError for a row that is longer or shorter than the header; first: the row's number."""
    for i, row in enumerate(rows, first):
        if len(row) != len(header):
            raise InputError(f"{path}: row {i} has {len(row)} fields, the header has {len(header)}")


def delimiter_of(header):
    """What stands between the columns of a table, by its first line."""
    if "\t" in header:
        return "\t"
    return ";" if header.count(";") > header.count(",") else ","


def as_named(path):
    """A file by its tidy name, however the name is spelled on the disk (macOS decomposes it)."""
    if path.is_file() or not path.parent.is_dir():
        return path
    return spelled_otherwise(path.parent, path.parent.stat().st_mtime_ns).get(path.name, path)


@lru_cache(maxsize=256)
def spelled_otherwise(folder, _changed):
    """{tidy name: path} of the files of a folder whose names are not tidy."""
    files = {tidy(path.name): path for path in folder.iterdir()}
    return {name: path for name, path in files.items() if name != path.name}


def number(text):
    """The number that a table's text is, NaN for any other."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def numbers(texts):
    """The numbers (n,) that texts are, NaN for any other."""
    import numpy as np

    try:
        return np.fromiter(map(float, texts), np.float64, len(texts))
    except ValueError:
        return np.array([number(text) for text in texts])


# ----- Telling things apart -----------------------------------------------------------------------


def digest(*parts):
    """Hash of arrays and lists of names: the same data, the same run."""
    import numpy as np

    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(np.ascontiguousarray(part).view(np.uint8))
        else:
            h.update(json.dumps(part).encode())
    return h.hexdigest()[:16]


def fingerprint(path):
    """Tells one slide from another without reading it all: its size and a hash of both ends.

    Of a slide of several files these are of all of them.
    """
    size, ends = 0, b""
    try:
        for part in (path, *parts_of(path)):
            of_part = part.stat().st_size
            with open(part, "rb") as f:
                ends += f.read(ENDS)
                f.seek(max(0, of_part - ENDS))
                ends += f.read(ENDS)
            size += of_part
    except OSError as e:
        return f"unreadable ({e.strerror})"  # opening it will say so
    return f"{size} bytes, {hashlib.sha256(ends).hexdigest()[:16]}"


def differences(old, new):
    """'tile_um 112.0 -> 150.0, ...' of two dicts of settings, those of the tiles inside as well."""
    old, new = flat(old), flat(new)
    changed = [key for key in new if old.get(key) != new[key]]
    return ", ".join(f"{key} {old.get(key)} -> {new[key]}" for key in changed)


def flat(settings):
    """Settings with those of the tiles that the features are of as their own."""
    inner = settings.get("tiles")
    settings = {**UNNAMED, **settings}
    if isinstance(inner, dict):
        settings.update(inner)
    settings.pop("tiles", None)
    return settings


def within(value, low, high):
    """Whether a value is a number in a range; a whole one where `low` is."""
    numbers = (int,) if type(low) is int else (int, float)
    return type(value) in numbers and low <= value <= high


def few(names, n=10):
    """The first n names, and how many there are in all."""
    more = f" ... ({len(names)} in all)" if len(names) > n else ""
    return ", ".join(map(str, names[:n])) + more
