"""Names of genes as tables have them: a spreadsheet's dates, R's dots, another species' or id's.

[ours]
"""

import re
from datetime import date, timedelta

from lab.files import InputError, few
from lab.words import same

# ----- What a spreadsheet made of names -----------------------------------------------------------

MONTHS = {  # abbreviations in the languages of spreadsheets, of months that genes are named like
    2: "feb february febr fév févr fev fevr",
    3: "mar mrz mär märz maerz mars mrt march marz marzo março março maalis márc мар мрт μαρ",
    4: "apr april avr avril abr ápr апр απρ",
    9: "sep sept september septembre set sett settembre setembro septiembre syys szept wrz eyl сен "
    "сент σεπ",
    10: "oct october okt oktober out ott октя окт οκτ",
    11: "nov november novembre ноя νοε",
    12: "dec december dez dezember déc décembre dic dicembre diciembre des joulu gru дек δεκ ara",
}
MONTH_OF = {same(word): month for month, words in MONTHS.items() for word in words.split()}
DAY_MONTH = re.compile(r"X?(\d{1,2})[-./ ]+([^\W\d_]+)\.?([-./ ]+\d{1,4})?")  # R puts X before
MONTH_DAY = re.compile(r"([^\W\d_]+)\.?[-./ ]+(\d{1,2}|\d{4})(\.\d)?")
ISO_DATE = re.compile(r"X?\d{4}[-./](\d{1,2})[-./](\d{1,2})([ T.].*)?")
EASTERN = re.compile(r"(\d{1,2})[月월] ?(\d{1,2})[日일]")
OTHER = re.compile(
    r"X?\d{1,2}[-./]\d{1,2}[-./](\d{4}|\d\d)|\d([.,]\d+)?E\+\d+|X?\d[.,]\d+E[-.]?\d+|#[A-Z/0]+[?!]?",
    re.IGNORECASE,
)  # dates whose month nobody knows, numbers such as 2.31E+13, errors such as #NAME?
FIRST_DAY = date(1899, 12, 30)  # that a spreadsheet counts from
SERIALS = range(36526, 47849)  # days of 2000 to 2030
FAMILIES = (  # month, symbols then and now, the numbers they go to
    (3, "MARCH", "MARCHF", 11),
    (3, "MARC", "MTARC", 2),
    (9, "SEPT", "SEPTIN", 14),
)
SINGLE = {
    (9, 15): "SEP15/SELENOF",
    (12, 1): "DEC1/DELEC1 or BHLHE40",
    (12, 2): "DEC2/BHLHE41",
    (10, 1): "OCT1/POU2F1",
    (10, 2): "OCT2/POU2F2",
    (10, 4): "OCT4/POU5F1",
}


def by_spreadsheets(names, before=""):
    """What spreadsheets made of names, in words after `before`; nothing where they made none."""
    made = {name: was for name in names if (was := made_of(name)) is not None}
    if not all(name.isdigit() for name in names):  # else they are Entrez's ids
        made |= {name: was for name in names if (was := made_of_day(name))}
    if not made:
        return ""
    said = [f"{name} ({was})" if was else name for name, was in made.items()]
    return (
        f"{before}a spreadsheet made {len(made):,} of {len(names):,} names of genes: "
        f"{few(said, 5)}; write the symbols back"
    )


def made_of(name):
    """What a name was before a spreadsheet took it for a date or number; '' where nobody knows.

    None of any other name.
    """
    if found := DAY_MONTH.fullmatch(name):
        day, month = found[1], MONTH_OF.get(same(found[2]))
    elif found := MONTH_DAY.fullmatch(name):
        day, month = found[2][-2:], MONTH_OF.get(same(found[1]))
    elif found := ISO_DATE.fullmatch(name) or EASTERN.fullmatch(name):
        month, day = int(found[1]), found[2]
    else:
        return "" if OTHER.fullmatch(name) else None
    return month and symbols_of(month, int(day))


def made_of_day(name):
    """What the number of a day was, such as 43525; nothing of any other name."""
    if not (name.isascii() and name.isdigit() and int(name) in SERIALS):
        return ""
    day = FIRST_DAY + timedelta(int(name))
    return symbols_of(day.month, day.day)


def symbols_of(month, day):
    """'MARCH1/MARCHF1 or MARC1/MTARC1' of 3, 1: symbols then and now of the genes so named."""
    known = [f"{old}{day}/{new}{day}" for m, old, new, n in FAMILIES if m == month and day <= n]
    return " or ".join(known) or SINGLE.get((month, day), "")


# ----- Names that somebody else spells otherwise --------------------------------------------------


def spelling(name):
    """What spellings of a name share: R and others put a dot for each sign, and X before digits."""
    text = re.sub(r"[\W_]", ".", name)
    return re.sub(r"^X(?=[\d.])", "", text)


def as_spelled(names, known):
    """The names, each that is not known as the one known gene that has its spelling."""
    known = set(known)
    if known.issuperset(names):
        return list(names)
    other = {}
    for gene in known:
        other.setdefault(spelling(gene), []).append(gene)
    spelled = []
    for name in names:
        genes = [] if name in known else other.get(spelling(name), [])
        spelled.append(genes[0] if len(genes) == 1 else name)
    return spelled


def as_in_sets(names, sets, what="the gene sets"):
    """Names as gene sets spell them -> (names, a remark on them or '').

    sets: {name: genes}. InputError where the sets know none of them, or next to none but in
    another case: those are another species'.
    """
    known = set().union(*sets.values())
    spelled = as_spelled(names, known)
    upper = {gene.upper() for gene in known}
    found = known.intersection(spelled)
    cased = [name for name in spelled if name not in known and name.upper() in upper]
    if known and names and 9 * len(found) <= len(cased) + (not found):
        raise InputError(
            f"{len(found) or 'none'} of {len(names):,} genes ({few(names, 3)}) are in {what} "
            f"({few(sorted(known), 3)}){why_strange(names, known, cased)}"
        )
    made = by_spreadsheets(sorted(known))
    remarks = [f"in {what} {made}"] if made else []
    changed = [f"{a} as {b}" for a, b in zip(names, spelled, strict=True) if a != b]
    if changed:
        remarks.append(f"{len(changed):,} genes are spelled as in {what} ({few(changed, 3)})")
    if cased:
        remarks.append(
            f"{len(cased):,} genes stand in {what} in another case ({few(cased, 3)}) and don't "
            "count: another species', or old symbols"
        )
    return spelled, "; ".join(remarks)


def why_strange(names, known, cased):
    """Why no gene is in any set, as far as names tell, and the mend."""
    kinds = [kind_of(names), kind_of(known)]
    if cased:
        return (
            f"; {len(cased):,} would be in another case ({few(cased, 3)}): are they another "
            "species'? Give the table by its orthologs' symbols"
        )
    if kinds[0] != kinds[1]:
        return (
            f": the run names genes by {kinds[0]}, these by {kinds[1]}: give sets of those, or "
            "(he2rna.py) --gene-table FILE with the columns gene_id and symbol"
        )
    return ": are they another species', or names of another kind?"


def kind_of(names):
    """What most of some names are."""
    kinds = {
        "Ensembl ids": r"ENS[A-Z]*\d+.*",
        "numbers, as Entrez's": r"\d+(\.0)?",
        "RefSeq ids": r"[NX][MR]_\d+.*",
    }
    for kind, form in kinds.items():
        if 2 * sum(bool(re.fullmatch(form, name)) for name in names) > len(names):
            return kind
    return "symbols"
