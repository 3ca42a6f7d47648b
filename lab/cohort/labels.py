"""Two classes of a column's words: which word is of which class, and which say nothing.

Spellings that differ in case or blanks alone are one label, and so are 1 and 1.0. [ours]
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from lab.files import InputError, few, number, one_line
from lab.words import find_word, is_unknown, nearest, same

NO_LABELS = ("slide", "patient", "project", "sample", "sample_type", "kind", "mpp")  # columns
MOST = 20  # different words make a label; more are ages or names  [ours]


class Labels(NamedTuple):
    """The two classes of n labels."""

    y: np.ndarray  # (n,) 1 positive, 0 negative, -1 of no class
    classes: tuple  # names (negative, positive)
    words: np.ndarray  # (n,) the labels as they are written
    silent: np.ndarray  # (n,) bool, labels that say nothing

    def take(self, rows):
        """The labels of some rows."""
        return self._replace(y=self.y[rows], words=self.words[rows], silent=self.silent[rows])


def is_number(text):
    """Whether a text is a number that is finite in float32."""
    return abs(number(text)) <= float(np.finfo(np.float32).max)  # nan is not


def plain(text):
    """A number as it is shortest, so that 1 and 1.0 are one label; a word as it is."""
    return f"{float(text):g}" if is_number(text) else one_line(text.strip())


def two_classes(labels, where, positive=None, negative=None):
    """The Labels of n words, those of `where`, a file.

    The positive class is --positive, else the higher of two numbers, else the later of two words;
    the negative one is --negative, a list, else all others that say something. A word that is named
    there is a class, whatever else it means.
    """
    words = [plain(label) for label in labels]
    counts = Counter(words)
    named = {same(plain(word)) for word in (positive, *(negative or ())) if word is not None}
    known = [w for w in counts if same(w) in named or not is_unknown(w, counts)]
    kinds = kinds_of(known, counts)
    silent = np.array([word not in known for word in words], bool)
    ones, zeros = named_kinds(kinds, where, positive, negative)
    if len(kinds) < 2:
        hidden = counted_words(words, silent & (np.array(words, str) != ""))
        hatch = f" ({hidden}: no class, unless --positive or --negative names it)" if hidden else ""
        raise InputError(
            f"{where}: every label is {few(kinds) or 'empty'}{hatch}; a classifier needs two "
            "classes"
        )
    others = [kind for kind in kinds if kind not in zeros]
    if not ones and (len(others) > 1 if zeros else len(kinds) > 2):
        raise InputError(
            f"{where}: {len(kinds)} labels ({few(kinds)}); --positive LABEL tells one of them "
            "from the others"
        )
    one = ones[0] if ones else others[-1]
    zeros = zeros or [kind for kind in kinds if kind != one]
    class_of = {same(kind): 0 for kind in zeros} | {same(one): 1}
    y = np.array([class_of.get(same(word), -1) for word in words], np.int64)
    if not (y == 0).any():
        raise InputError(f"{where}: {one} is the positive class, and --negative names it as well")
    zero = zeros[0] if len(zeros) == 1 else f"not {one}"
    return Labels(y, (zero, one), np.array(words), silent)


def kinds_of(known, counts):
    """Each label in its commonest spelling: numbers by their size, words, and + the last of all."""
    spelled = {}
    for word in sorted(known, key=lambda word: (-counts[word], word)):
        spelled.setdefault(same(word), word)
    numbers = [word for word in spelled.values() if is_number(word)]
    others = set(spelled.values()) - set(numbers)
    return sorted(numbers, key=float) + sorted(others, key=lambda word: ("+" in word[:2], word))


def named_kinds(kinds, where, positive, negative):
    """The labels that --positive and --negative name, a list each."""
    named = []
    for option, words in (("--positive", positive), ("--negative", negative)):
        found = []
        for word in [words] if isinstance(words, str) else words or ():
            kind = find_word(plain(word), kinds)
            if kind is None:
                near = f"; {nearest(word, kinds)}" if len(kinds) > 10 else ""
                raise InputError(f"{option} {word}: the labels of {where} are {few(kinds)}{near}")
            found.append(kind)
        named.append(found)
    return named


def counted_words(words, which):
    """'Negative 12, Low 3': the words of which (n,) bool holds, the commonest first."""
    counts = Counter(word or "empty" for word in np.array(words)[which].tolist())
    return ", ".join(f"{word} {n}" for word, n in counts.most_common())


def words_line(data):
    """How many of a study's bags have which word, of both classes."""
    y, words = data["y"], data["words"]
    return f"positive: {counted_words(words, y == 1)}; negative: {counted_words(words, y == 0)}"


def of_no_class(labels, names, what):
    """{what was left out, with its words: names} of labels (n,) that are of neither class."""
    left_out = {}
    for why, own in (
        (f"{what} without a label", labels.silent),
        (f"{what} of other labels", (labels.y < 0) & ~labels.silent),
    ):
        words = counted_words(labels.words, own)
        about = f" ({words})" if own.any() and words != f"empty {own.sum()}" else ""
        left_out[why + about] = np.array(names)[own].tolist()
    return left_out


def check_labels(found, path, samples):
    """Warn of label columns of samples.csv that have one class, or words that say nothing, or one
    label in several spellings: what is doubtful before anybody has said which column is learned.
    """
    for column in samples[0]:
        words = [plain(s[column]) for s in samples]
        counts = Counter(words)
        known = [word for word in counts if not is_unknown(word, counts)]
        kinds = kinds_of(known, counts)
        if column in NO_LABELS or not 0 < len(kinds) <= MOST:
            continue
        said = {
            "one class only": len(kinds) == 1,
            "one label in several spellings": len(kinds) < len(known),
            "words that say nothing": set(counts) - set(known) - {""},
        }
        doubts = [what for what, is_so in said.items() if is_so]
        if doubts:
            of_class = np.isin(words, known)
            nothing = f"; of no class: {counted_words(words, ~of_class)}" * (not of_class.all())
            found.warn(
                f"{path}, column {column}: {', '.join(doubts)}: {counted_words(words, of_class)}"
                f"{nothing}"
            )
