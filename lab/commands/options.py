"""What the three programs share: a command line of verbs, and its --help."""

import argparse
import difflib
import importlib
import re
import sys
import textwrap
from functools import cache, partial
from pathlib import Path

from lab.commands.start import refuse_small_space
from lab.trust import name_encoders

SEEDS = 2**63  # numbers that every generator of random numbers takes
LETTERS = {int: "N", float: "X"}  # how --help names an option's value
LAB = Path(__file__).parents[1]


# ----- A program and its verbs --------------------------------------------------------------------


def prepared(program, manual, verbs, shared, argv=None):
    """What a command line says, as a function that does it and returns the exit status.

    manual: what --help of the program says; verbs: {name: one line}; shared: the verbs that several
    processes may share, None for steps that share the slides.
    """
    parse = partial(parse_words, program, manual, verbs)
    return partial(do, parse(sys.argv[1:] if argv is None else argv), shared)


def parse_words(program, manual, verbs, words):
    """The options that a command line's words are.

    The room of a verb is imported when it is asked for: lab.commands.PROGRAM.VERB has
    options(parser) and run(o), and its docstring is what --help of the verb says.
    """
    parser = Parser(prog=f"{program}.py", description=manual, formatter_class=Help)
    help_of = partial(Parser, formatter_class=Help)
    add = parser.add_subparsers(dest="verb", required=True, parser_class=help_of)
    asked = next((word for word in words if not word.startswith("-")), None)
    parsers = {name: add.add_parser(name, help=line) for name, line in verbs.items()}
    if asked in verbs:
        refuse_unknown(parser, asked, words)
        refuse_small_space()
        room = importlib.import_module(f"lab.commands.{program}.{asked}")
        verb = parsers[asked]
        verb.description = room.__doc__
        verb.set_defaults(function=room.run, parse=partial(parse_words, program, manual, verbs))
        room.options(verb)
    o = parser.parse_args(words)
    o.seed = getattr(o, "seed", 0) or 0
    return o


def refuse_unknown(parser, verb, words):
    """Refuse an option that no verb has, before its room imports torch.

    Whatever is an option, or the start of one, stands in quotes in the sources, with -- or without.
    """
    words = words[: words.index("--")] if "--" in words else words
    given = [word for word in words if word.startswith("--") and " " not in word]
    quoted = quoted_words() if given else ()
    for name in (word.partition("=")[0] for word in given):
        bare = name[2:].removeprefix("no-")
        if not any(word.removeprefix("--").startswith(bare) for word in quoted):
            near = [f"nearest: {word}; " for word in difflib.get_close_matches(name, quoted, 1)]
            manual = f"python {parser.prog} {verb} --help lists all"
            parser.error(f"unrecognized arguments: {name} ({''.join(near)}{manual})")


@cache
def quoted_words():
    """The words in quotes in the sources of all rooms but tests, and argparse's --help."""
    paths = [path for path in LAB.rglob("*.py") if "tests" not in path.parts]
    text = "".join(path.read_text("utf-8") for path in paths)
    return sorted({"--help", *re.findall(r'"((?:--)?[a-z][a-z0-9-]*)"', text)})


def do(o, shared):
    """Run a verb -> its exit status."""
    from lab.locks import release  # here, that --help need not wait for them
    from lab.processes import one_voice

    name_encoders(o)
    try:
        with one_voice(o, shared):
            return o.function(o)
    finally:
        release()


class Parser(argparse.ArgumentParser):
    """One to which an empty word, such as of an unset variable of the shell, is a mistake."""

    def _get_value(self, action, text):
        if text == "" and action.nargs != argparse.PARSER:  # a verb's words are its own parser's
            raise argparse.ArgumentError(
                action, "an empty word was given (an unset variable of the shell?)"
            )
        return super()._get_value(action, text)

    def _print_message(self, message, file=None):
        """Without argparse's silence where it can't be written."""
        (file or sys.stderr).write(message)


class Help(argparse.RawDescriptionHelpFormatter):
    """--help within two screens: usage names only what must be given, names stay whole."""

    def add_usage(self, usage, actions, groups, prefix=None):
        named = [action for action in actions if action.required or not action.option_strings]
        if len(named) < len(actions):
            rest = argparse.Action(["[options]"], "", nargs=0, required=True)
            named = [rest, *named]
        super().add_usage(usage, named, groups, prefix)

    def _get_default_metavar_for_optional(self, action):
        letter = "N" if action.type is natural else LETTERS.get(action.type)
        return letter or super()._get_default_metavar_for_optional(action)

    def _split_lines(self, text, width):
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def natural(text):
    """A whole number >= 0 that every generator of random numbers takes, for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < SEEDS):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number >= 0 and < 2**63")
    return int(text)
