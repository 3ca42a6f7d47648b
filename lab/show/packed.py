"""A long table as a short text, which a page unpacks in the browser (page.js).

30,839 genes in 28 cancers are 863,492 rows. What a reader sees of a number is three digits, so each
becomes a whole number that rises with it. p falls as R rises: what stands behind R is put down as
differences in the order of R, and p takes a third of the room. [ours]

    header    its length in 4 bytes, then JSON: rows, columns (name, kind, says, words, least), and
              behind how many `plain` ones they are put down along `order`, the numbers of the
              columns to sort by, the last first
    columns   one after another, each as 4 planes of `rows` bytes, the lowest bytes first: 0 where
              there is no value, else 1 + its whole number - least. Of differences twice each,
              negative ones less one: 0, -1, 1, -2 are 0, 1, 2, 3
"""

import base64
import json
import zlib
from typing import NamedTuple

import numpy as np

from he2rna import ALPHA

PER_DECADE = 900  # numbers of three digits between two powers of ten
SMALLEST = 400  # powers of ten below 1; float64 has 324


class Column(NamedTuple):
    """A column: its kind is word, whole, r (3 decimals) or p (3 digits, never negative).

    values (n,): its numbers, nan where there is none; of a word its place in `words`. says: what
    the reader is told of it.
    """

    name: str
    kind: str
    values: np.ndarray
    says: str = ""
    words: tuple = ()


def pack(columns, group=None):
    """Columns as base64, a row for each name of the first.

    group: the name of a column of words, within each of which p falls as the first column of kind
    r rises.
    """
    columns = [sorted_words(column) for column in columns]
    names = [column.name for column in columns]
    kinds = [column.kind for column in columns]
    groups = columns[names.index(group) if group else 0].values
    rows = np.lexsort((columns[0].values, groups))
    numbers = [numbered(column.kind, column.values[rows]) for column in columns]
    plain, order, along = len(columns), [], None
    if "r" in kinds:
        plain = kinds.index("r") + 1
        order = [plain - 1, *([names.index(group)] if group else ())]
        along = np.lexsort([numbers[i][1] for i in order])
    heads, bodies = [], []
    for i, (column, (least, codes)) in enumerate(zip(columns, numbers)):
        head = {**column._asdict(), "least": least}
        head.pop("values")
        heads.append(head)
        bodies.append(planes(codes if i < plain else differences(codes[along])))
    header = {"rows": len(rows), "plain": plain, "order": order, "columns": heads}
    header = json.dumps(header).encode()
    raw = b"".join([len(header).to_bytes(4, "little"), header, *bodies])
    return base64.b64encode(zlib.compress(raw, 6)).decode()


def sorted_words(column):
    """The column with its words in their order, so that their places sort as they do."""
    if column.kind != "word":
        return column
    order = sorted(range(len(column.words)), key=column.words.__getitem__)
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    return column._replace(values=place[column.values], words=tuple(column.words[i] for i in order))


def numbered(kind, values):
    """(the least whole number, codes (n,)) of values (n,)."""
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    if not known.any():
        return 0, np.zeros(len(values), np.int64)
    values = np.where(known, values, values[known][0])
    whole = {"r": thousandths, "p": digits}.get(kind, np.rint)(values).astype(np.int64)
    least = int(whole.min())
    return least, np.where(known, 1 + whole - least, 0)


def thousandths(values):
    return np.rint(values * 1000)


def digits(p):
    """Numbers >= 0 to three digits as whole numbers that rise with them; 0 for 0.

    What is below ALPHA stays below it: .04996 is .0499, as it is significant.
    """
    power = np.floor(np.log10(np.where(p > 0, p, 1)))
    mantissa = np.rint(p / 10.0 ** (power - 2))  # 100 to 1000, which is the next power's 100
    number = (power + SMALLEST) * PER_DECADE + mantissa - 99
    limit = round((-2 + SMALLEST) * PER_DECADE + ALPHA * 1e4 - 99)
    number = np.where((p < ALPHA) & (number == limit), limit - 1, number)
    return np.where(p > 0, number, 0)


def differences(codes):
    """From each to the next, as numbers that are not negative."""
    step = np.diff(codes, prepend=0)
    return np.where(step < 0, -2 * step - 1, 2 * step)


def planes(codes):
    """Numbers from 0 to 2^32 as bytes: all lowest ones, then all of the next."""
    return codes.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes()
