"""Names of patients, samples and slides: whose a barcode is, and which may be one and the same."""

import re

from lab.words import same

PATIENTS = re.compile(  # what the names of samples and slides of a patient begin with      [ours]
    r"(TCGA-\w\w-\w{4}|C3[LN]-\d{5}|TARGET-\d\d-[A-Z0-9]{6}|GTEX-[A-Z0-9]{4,5}"
    r"|HCM-[A-Z]{4}-\d{4}-[A-Z]\d\d)(?![A-Z0-9])"
)
BETWEEN = r"[\s._‐-―-]+"  # blanks, dots, underscores, hyphens and dashes


def person(name):
    """The patient whose barcode a name begins with, in capitals, whatever its length; else None.

    Of TCGA its first 12 characters; of CPTAC, TARGET, GTEx and HCMI what stands for them.
    """
    found = PATIENTS.match(name.upper())
    return found and found[1]


def who(patient):
    """What two spellings of one patient share: the barcode's patient, else the name itself."""
    return person(patient) or patient


def alike(name, between=""):
    """What names share that differ in case, blanks, hyphens, dots or leading zeros alone."""
    text = re.sub(r"^(\d+)\.0$", r"\1", same(name))  # a spreadsheet's number
    text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    return re.sub(BETWEEN, between, text)


def alike_groups(names):
    """Lists of different names that may be one. "1-11" and "11-1" are two, "111" may be either."""
    groups = {}
    for name in dict.fromkeys(names):
        groups.setdefault(alike(name), []).append(name)
    for group in groups.values():
        parts = {}
        for name in group if len(group) > 1 else ():
            parts.setdefault(re.sub(r"(?<!\d)-|-(?!\d)", "", alike(name, "-")), []).append(name)
        if any("-" not in part for part in parts):
            yield group
        else:
            yield from (part for part in parts.values() if len(part) > 1)


# ----- Joins that fail ----------------------------------------------------------------------------

RULES = {  # how names of two tables come to differ [ours]
    "but for case, blanks, hyphens, dots or leading zeros": alike,
    "by what stands before the first dot": lambda name: alike(name.partition(".")[0]),
    "without R's X": lambda name: alike(re.sub(r"^X(?=\d)", "", name)),
    "by the sample's part of a barcode": lambda name: person(dashed(name)) and dashed(name)[:16],
    "by the patient's part of a barcode": lambda name: person(dashed(name)),
}


def dashed(barcode):
    """A barcode whose hyphens R has made dots, in capitals."""
    return barcode.replace(".", "-").upper()


def would_match(names, others):
    """Words on the rule by which most of these names would be among the others, or ''."""
    best, said = 0, ""
    for words, rule in RULES.items():
        there = {rule(other): other for other in others}
        if 3 * len(there) < len(others):  # too short to tell them apart
            continue
        pairs = [(name, there[rule(name)]) for name in names if rule(name) in there and rule(name)]
        if len(pairs) > best:
            best = len(pairs)
            said = (
                f"{best} of {len(names)} would match {words}: {pairs[0][0]!r} here is "
                f"{pairs[0][1]!r} there; spell them alike"
            )
    return said
