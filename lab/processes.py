"""Several processes of one run, by torchrun; processes of an array job that share the slides.

Each makes its part of the slides, then of the folds or splits, which don't depend on each other: so
the results are those of one process to the bit. The first one speaks, checks and judges. [ours]
"""

import os
import sys
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta

from lab.files import InputError, say_error

PATIENCE = timedelta(days=2)  # a part may take hours


def met():
    """torch.distributed where this process sees others, else None: alone it needs no torch."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None


def share_of_slides():
    """(rank, processes) as torchrun or an array job set RANK and WORLD_SIZE; else (0, 1)."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not rank and not world:
        return 0, 1
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise InputError(
            f"RANK={rank} WORLD_SIZE={world} in the environment: wanted are both, RANK from 0 to "
            "WORLD_SIZE - 1"
        )
    return int(rank), int(world)


def join_processes():
    """(rank, processes) of a run under torchrun, which see each other from here on; else (0, 1)."""
    rank, world = share_of_slides()
    if world == 1 or met():
        return rank, world
    if "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"RANK={rank} WORLD_SIZE={world} in the environment, but no MASTER_ADDR: processes of "
            "one run must see each other; start them with torchrun, or one without RANK and "
            "WORLD_SIZE"
        )
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as e:  # no port, no network, no such host
        why = str(e).splitlines()[0]
        raise InputError(f"process {rank} of {world} can't reach the others ({why})") from None
    return rank, world


def of_all(value):
    """[value of each process], in all of them, when the last has come here."""
    dist = met()
    if not dist:
        return [value]
    values = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError:
        raise InputError(
            "another process of this run has ended, and says why; the same command goes on from "
            "here"
        ) from None
    return values


def wait_for_others(world):
    """Under torchrun, end together: it stops all processes as soon as one ends with a failure."""
    if world > 1 and "MASTER_ADDR" in os.environ:
        join_processes()
        of_all(None)


def by_first(function):
    """What function returns in the first process, in all; what it refuses ends all, in one line."""
    dist = met()
    if not dist:
        return function()
    value, failed = None, False
    if dist.get_rank() == 0:
        try:
            value = function()
        except (InputError, OSError) as e:
            say_error(e)
            failed = True
    value, failed = of_all((value, failed))[0]
    return sys.exit(2) if failed else value


def share_out(make, cohort, slides, o, *into):
    """make(cohort, slides, o) -> {slide: why it failed}; each process makes its part."""
    rank, world = o.share
    failed = {}
    for part in of_all(make(cohort, slides[rank::world], o, *into)):
        failed.update(part)
    return {name: failed[name] for name in slides if name in failed}


@contextmanager
def one_voice(o, shared):
    """A context for a command, o.verb: of several processes (o.share) only the first prints.

    shared: the verbs that several processes may share; InputError for any other. None: all of a
    program whose processes need not see each other.
    """
    if shared is None:
        o.share = share_of_slides()
    elif o.verb in shared:
        o.share = join_processes()
    elif os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment: {o.verb} is one process; "
            f"several share {', '.join(shared)} and the steps of tiling.py: leave torchrun out"
        )
    silent = met() and met().get_rank() > 0
    try:
        with redirect_stdout(None) if silent else nullcontext():
            yield
        of_all(None)  # the first works on when the others have nothing more to do
    finally:
        if met():
            met().destroy_process_group()  # else its threads may abort the process as it ends


def say(text):
    """Print a line that each process has to say, at once: torchrun's processes have no buffer."""
    print(f"{text}\n", end="", file=sys.stdout or sys.__stdout__, flush=True)


def log_path(folder, share):
    """log.jsonl, a line for each piece of work, or the part of it that one of several processes
    writes.
    """
    rank, world = share
    return folder / (f"log-{rank}-of-{world}.jsonl" if rank else "log.jsonl")
