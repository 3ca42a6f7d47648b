"""What the three programs share: a command line of verbs, its --help, and how a command ends."""

import argparse
import signal
import sys
import textwrap
import threading
from functools import partial

from lab.files import InputError, say_error
from lab.locks import release
from lab.processes import leave, one_voice

SEEDS = 2**63  # numbers that every generator of random numbers takes
LETTERS = {int: "N", float: "X"}  # how --help names an option's value
AGAIN = 0.05  # seconds after which a lost interruption comes again


# ----- A program and its verbs --------------------------------------------------------------------


def run_program(program, manual, verbs, shared, argv=None):
    """Parse a command line and run its verb -> exit status.

    manual: what --help of the program says; verbs: {name: (module, one line)}, where a module has
    options(parser) and run(o), and its docstring is what --help of the verb says; shared: the verbs
    that several processes may share, None for steps that share the slides.
    """
    parser = Parser(prog=program, description=manual, formatter_class=Help)
    help_of = partial(Parser, formatter_class=Help)
    add = parser.add_subparsers(dest="verb", required=True, parser_class=help_of)
    for name, (module, line) in verbs.items():
        verb = add.add_parser(name, help=line, description=module.__doc__)
        verb.set_defaults(function=module.run, parse=parser.parse_args)
        module.options(verb)
    o = parser.parse_args(argv)
    o.seed = getattr(o, "seed", 0) or 0
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


# ----- How a command ends -------------------------------------------------------------------------


def run(main):
    """Run a program and end the process.

    A user's mistake is one line and status 2; SIGINT and SIGTERM are one line and status 130 and
    143. Anything else is a mistake of ours, and its traceback is shown.
    """
    caught = catch_signals()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # µ and ± on any terminal
    try:
        leave(main())
    except BaseException as e:
        if caught:  # where a library was interrupted, it comes out as another error
            what = "terminated" if caught[0] == signal.SIGTERM else "interrupted"
            print(f"\n{what}; the same command goes on from here", file=sys.stderr)
            sys.exit(128 + caught[0])
        if not isinstance(e, (InputError, OSError)):
            raise
        say_error(e)
        sys.exit(2)


def catch_signals():
    """SIGINT and SIGTERM raise KeyboardInterrupt from here on -> the list of those that came."""
    caught = []

    def stop(number, _):
        caught.append(number)
        raise KeyboardInterrupt

    def lost(error):
        """Python drops what is raised while it collects garbage: let the signal come again."""
        if caught and isinstance(error.exc_value, KeyboardInterrupt):
            threading.Timer(AGAIN, signal.raise_signal, caught[-1:]).start()
        else:
            sys.__unraisablehook__(error)

    sys.unraisablehook = lost
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return caught
