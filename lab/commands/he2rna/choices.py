"""python he2rna.py choices: where paper and authors' code differ or are silent; what is done."""

from lab.audit.choices import read_choices, show_choices


def options(parser):
    """None."""


def run(o):
    show_choices(read_choices("he2rna"), "he2rna.py")
    return 0
