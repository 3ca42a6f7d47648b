"""How `python PROGRAM.py VERB ...` begins and ends, whatever signals, pipes and memory do.

Nothing heavy is imported here: --help and mistakes are said at once.
"""

import importlib
import os
import re
import signal
import sys
import threading
from functools import partial

from lab.files import InputError, reason, say_error

AGAIN = 0.05  # seconds after which a lost interruption comes again
LEAST = 2**31  # bytes of address space; with less, a library may wait for more without end [ours]
CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # but tab and the ends of lines
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
NO_MEMORY = (  # what torch, the loader and Python's threads say of it
    "allocate memory",
    "out of memory",
    "bad_alloc",
    "failed to map segment",
    "start new thread",
)


def start(program):
    """Be a program, from its command line to its exit status.

    Until the verb is at work it holds nothing and has written nothing. So a signal ends the process
    at once: an import that is interrupted comes out as any error.
    """
    for number in SIGNALS:
        signal.signal(number, end_at_once)
    use_utf8()
    open_streams()
    run(lambda: importlib.import_module(f"lab.commands.{program}").prepare())


def run(prepare):
    """Do what prepare() returns, a function, and end the process with its exit status.

    A user's mistake, or the system's refusal, is one line and status 2; SIGINT and SIGTERM are one
    line and status 130 and 143. Anything else is a mistake of ours, and its traceback is shown.
    """
    caught = []
    try:
        try:
            work = prepare()
            caught = catch_signals()
            status = work()
        except SystemExit as e:  # argparse's, and that of processes which end together
            status = e.code
        sys.stdout.flush()
    except BaseException as e:
        status = say_why(e, caught)
        if status is None:
            raise
    leave(status)


def say_why(e, caught):
    """Say in one line why a command ends -> its exit status; None for a mistake of ours.

    caught: the signals that came. Where one interrupts a library, it comes out as another error.
    """
    try:
        if caught:
            print(last_words(caught[0]), file=sys.stderr)
            return 128 + caught[0]
        if isinstance(e, BrokenPipeError):
            raise e
        if is_of_memory(e):
            e = InputError(
                f"not enough memory ({reason(e)}): smaller --batch, fewer --workers or threads "
                "(OMP_NUM_THREADS) take less"
            )
        if not isinstance(e, InputError | OSError):
            return None
        say_error(e)
        return 2
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # as the shell says of whom no one reads; to whom to say it?


def last_words(number):
    return f"\n{SIGNALS[number]}; the same command goes on from here"


def is_of_memory(e):
    texts = isinstance(e, RuntimeError | ImportError | OSError)
    return isinstance(e, MemoryError) or (texts and any(words in str(e) for words in NO_MEMORY))


def leave(status):
    """End this process with a command's exit status.

    One that has met others ends at once: gloo's threads may live on into C++'s own clean-up, which
    aborts a process whose work is done (2 of 5 on a busy machine), and torchrun then calls the run
    failed.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if "MASTER_ADDR" in os.environ:
        os._exit(status or 0)
    sys.exit(status)


# ----- Memory, signals and streams ----------------------------------------------------------------


def refuse_small_space():
    """Refuse to import torch where it has no room: SciPy's OpenBLAS would ask for it for ever."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < LEAST:
        raise InputError(
            f"not enough memory: ulimit -v {limit // 1024} is too little address space; wanted are "
            f"{LEAST // 1024} at least, or unlimited"
        )


def use_utf8():
    """Begin again in UTF-8 mode where the locale is of another encoding: names and tables are in
    UTF-8, whoever looks.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def end_at_once(number, _):
    try:
        os.write(2, f"{last_words(number)}\n".encode())
    finally:
        os._exit(128 + number)


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
    for number in SIGNALS:
        signal.signal(number, stop)
    return caught


def open_streams():
    """Let all that is printed be written as UTF-8, whatever the locale.

    A stream that the shell closed (>&-) goes nowhere. Left closed, the next file that is opened
    would get its number, and what libraries in C complain of would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            stream = os.fdopen(os.open(os.devnull, os.O_RDWR), mode)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # names may be no text
        stream.write = partial(write_plain, stream.write)


def write_plain(write, text):
    """Write a text without what a terminal would obey, such as an escape in a stranger's name."""
    return write(CONTROL.sub(lambda sign: ascii(sign[0])[1:-1], text))
