"""Words that people write in tables: those that say nothing, those that are the same, the nearest.

[ours]
"""

import difflib
import re
import unicodedata

SAYS_NOTHING = """
na, n a, nan, null, nil, none, undefined, empty, blank, missing, missing data, missing value,
no data, no information, no result, tbd, tba, to be determined, pending, discrepancy, ambiguous,
equivocal, indeterminate, indetermined, undetermined, undeterminable, inconclusive,
unknown, unk, unspecified, unreported, unavailable, untested, unevaluable, inevaluable,
unassessable, uninterpretable, uninformative, non informative, noninformative, data not available,
not evaluated, not evaluable, not reported, not performed, not done, not tested, not assessed,
not assessable, not available, not applicable, not known, not determined, not recorded,
not provided, not specified, not stated, not collected, not sampled, not examined, not measured,
not interpretable, not informative, not entered, not submitted, not obtained, not annotated,
not allowed to collect, do not report, cannot be assessed, cannot be determined,
cannot be evaluated, could not be determined, can t be determined, nd, qns, withheld,
redacted, insufficient, insufficient data, insufficient quantity, insufficient material,
insufficient tissue, quantity not sufficient
"""
# What GDC, TCGA, cBioPortal and common usage write where nobody knows a label  [ours]
UNKNOWN = frozenset(" ".join(SAYS_NOTHING.split()).split(", "))
LONGEST = 200  # bytes of a name: what stands beside it in a file's has room  [ours]
MINUS = ("-", "–", "−")
NO_WIDTH = "\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"  # nobody sees them
BLANKS = "\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
TIDY = str.maketrans(dict.fromkeys(NO_WIDTH, "") | dict.fromkeys(BLANKS, " "))


def composed(text):
    """A text in Unicode's composed form (NFC), with plain blanks and no marks without width."""
    return text if text.isascii() else unicodedata.normalize("NFC", text.translate(TIDY))


def tidy(name):
    """A name as it is kept here, however it was typed: composed, with no blanks at its ends."""
    return composed(str(name)).strip()


def fits(name):
    """Whether a file or folder here can have a name: no path, nothing hidden, not too long."""
    if not name.isprintable() or "/" in name or name[:1] in ("", "."):
        return False
    return len(name.encode()) <= LONGEST


def same(word):
    """What all spellings of a word share: neither case, blanks nor Unicode's form matter."""
    return " ".join(unicodedata.normalize("NFKC", str(word)).casefold().split())


def is_unknown(word, among=()):
    """Whether a label says that nobody knows it, in any case, brackets, quotes and blanks.

    TCGA puts all such words in square brackets. A label of signs alone, as --, . or ?, says nothing
    either; + does, and so does - among labels of which one is +.
    """
    text = same(word)
    bare = " ".join(re.findall(r"[^\W_]+|\+", text))
    if text.strip("()") in MINUS and any(same(other).strip("()") == "+" for other in among):
        return False
    return not bare or bare in UNKNOWN or (text[0], text[-1]) == ("[", "]")


def find_word(asked, known):
    """The known word that is the one asked for, if only in another case; None where none is."""
    if asked in known:
        return asked
    return next((word for word in known if same(word) == same(asked)), None)


def nearest(name, known):
    """The known names that are most like one that is not known, in words."""
    upper = {word.upper(): word for word in known}
    near = difflib.get_close_matches(name.upper(), upper, 3)
    if near:
        return f"nearest: {', '.join(upper[word] for word in near)}"
    return f"it has {len(known):,}, such as {', '.join(list(known)[:3])}"
