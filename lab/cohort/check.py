"""All checks of a cohort, in one list of findings: before hours of work, and for doctor.

A check takes `found` (lab.findings.Findings) first, adds what it finds and goes on. What needs no
pixels stands here in the order of its cost; what a program alone knows (labels) adds to the same
list where that program reads its cohort.
"""


def check_cohort(found, cohort, samples, o, table=None):
    """Add to `found` what is wrong or doubtful about a cohort.

    samples: rows of samples.csv; table: (key, ids, genes, a) of read_expression, where there is
    one.
    """
