"""python he2rna.py choices: where paper and authors' code differ or are silent; what is done."""

from lab.audit.choices import show_choices
from lab.he2rna.choices import CHOICES


def options(parser):
    """None."""


def run(o):
    show_choices(CHOICES, "he2rna.py")
    return 0
