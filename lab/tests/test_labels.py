"""Two classes of words. Authorities: the words of GDC's, TCGA's and cBioPortal's own tables."""

import numpy as np
import pytest

from lab.cohort.labels import check_labels, of_no_class, two_classes, words_line
from lab.files import InputError
from lab.findings import Findings
from lab.he2rna.msi_study import msi_labels
from lab.words import is_unknown

NOTHING = (
    *("", " ", "--", "'--", ".", "?", "-", "N/A", "#N/A", "<NA>", "n.a.", "NaN", "None", "null"),
    *("[Not Evaluated]", "[Unknown]", "[Discrepancy]", "[Not Applicable]", "[Completed]"),
    *("Not Reported", "not_performed", "NOT TESTED", "Unknown.", "(unknown)", "Equivocal", "QNS"),
    *("Indeterminate", "Pending", "missing", "Not Allowed To Collect", "[Redacted]"),
)
CLASSES = (
    *("+", "Positive", "Unknown primary", "No", "NAT", "NR", "0", "X", "NED", "Other", "MSI-L"),
    *("Not Hispanic or Latino", "Not Detected", "No evidence of disease", "ER-", "Never", "陽性"),
)


@pytest.mark.parametrize("word", NOTHING)
def test_a_word_that_says_nothing_is_no_class(word):
    labels = two_classes(["Positive", word, "Negative"], "t")
    assert is_unknown(word) and labels.y.tolist() == [1, -1, 0] and labels.silent[1]


@pytest.mark.parametrize("word", CLASSES)
def test_a_word_that_says_something_is_one(word):
    assert not is_unknown(word)


@pytest.mark.parametrize(
    "words, positive, negative, y, classes",
    [
        ("Positive|positive|Negative|Low", "POSITIVE", None, [1, 1, 0, 0], "not Positive"),
        ("1|0|1.0|01|na", None, None, [1, 0, 1, 1, -1], "0"),
        ("+|-|?", None, None, [1, 0, -1], "-"),
        ("None|Chemo|none|", "None", None, [1, 0, 1, -1], "Chemo"),
        ("None|Chemo|Radio|[Unknown]", "chemo", ["none"], [0, 1, -1, -1], "None"),
        ("A|B|C", "A", ["C", "b"], [1, 0, 0], "not A"),
        ("A|B", None, ["B"], [1, 0], "B"),
        ("Unknown primary|Unknown|Colon", None, None, [1, -1, 0], "Colon"),
        ("e\u0301|e|\u00e9", "\u00e9", None, [1, 0, 1], "e"),
    ],
)
def test_which_words_are_which_class(words, positive, negative, y, classes):
    labels = two_classes(words.split("|"), "t", positive, negative)
    assert labels.y.tolist() == y and labels.classes[0] == classes


@pytest.mark.parametrize(
    "words, positive, negative, refused",
    [
        ("Positive|Negative|Low", "Postive", None, "--positive Postive: the labels of t are Low, "),
        ("a|b", "a", ["c"], "--negative c: the labels of t are a, b"),
        ("a|b", "A", ["a"], "a is the positive class, and --negative names it"),
        ("a|b|c", None, ["a"], "3 labels"),
        ("None|Chemo|none", None, None, r"every label is Chemo \(None 1, none 1: no class, unless"),
        ("", None, None, "every label is empty; a classifier"),
    ],
)
def test_what_leaves_no_two_classes_is_refused(words, positive, negative, refused):
    with pytest.raises(InputError, match=refused):
        two_classes(words.split("|"), "t", positive, negative)


def test_every_word_is_listed_with_its_count():
    words = ["Positive", "Negative", "Low", "Negative", "Equivocal", "Equivocal", "", "high"]
    labels = two_classes(words, "t", "positive", ["Negative", "Low"])
    line = words_line({"y": labels.y, "words": labels.words})
    assert line == "positive: Positive 1; negative: Negative 2, Low 1"
    assert of_no_class(labels, np.array(list("abcdefgh")), "slides") == {
        "slides without a label (Equivocal 2, empty 1)": ["e", "f", "g"],
        "slides of other labels (high 1)": ["h"],
    }


def test_msi_has_three_words_and_those_that_say_nothing():
    labels, said = msi_labels(["msi-h", "MSS ", "MSI-L", "[Not Evaluated]", "Indeterminate"], "t")
    assert labels.tolist() == ["MSI-H", "MSS", "MSI-L", "", ""]
    assert said == " (labels that say nothing: [Not Evaluated] 1, Indeterminate 1)"
    with pytest.raises(InputError, match="label MSI low: wanted is"):
        msi_labels(["MSI low"], "t")


def test_doubtful_columns_are_named_before_one_is_chosen():
    words = {
        "er": ["Positive", "positive", "Negative", "Equivocal"],
        "her2": ["0", "1", "0", ""],
        "arm": ["A"] * 4,
        "sample_type": ["Primary Tumor"] * 4,
        "patient": ["x"] * 4,
    }
    found = Findings()
    check_labels(found, "s.csv", [{key: v[i] for key, v in words.items()} for i in range(4)])
    er, arm = found.warned
    assert er.startswith("s.csv, column er: one label in several spellings, words that say nothing")
    assert er.endswith(": Positive 1, positive 1, Negative 1; of no class: Equivocal 1")
    assert arm == "s.csv, column arm: one class only: A 4" and not found.refused
