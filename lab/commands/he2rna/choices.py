"""lab.commands.he2rna.choices"""

from lab.audit.choices import show_choices
from lab.he2rna.choices import CHOICES


def run(o):
    """Where paper and authors' code differ or are silent, and what is done here."""
    show_choices(CHOICES, "he2rna.py")
    return 0


def options(parser):
    pass
