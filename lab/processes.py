"""lab.processes"""

import os
import sys
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist

from lab.files import InputError, say_error

PROCESSES = []  # under torchrun: the group of those of this run


# Several processes of one run (torchrun): each makes its part of the slides, then of the folds or splits, which don't depend
# on each other, so that the results are those of one process to the bit; the first one speaks, checks and judges. [ours]
def share_of_slides():
    """(rank, processes) that share the slides, from RANK and WORLD_SIZE, as torchrun or a cluster's array job set them."""
    rank, world = (os.environ.get(k) for k in ("RANK", "WORLD_SIZE"))
    if rank is None and world is None:
        return 0, 1
    if not (rank and world and rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise InputError(
            f"RANK={rank or ''} WORLD_SIZE={world or ''} in the environment: wanted are both, RANK from 0 to "
            "WORLD_SIZE - 1"
        )
    return int(rank), int(world)


def join_processes():
    """(rank, processes) of a run under torchrun, which see each other from here on; (0, 1) without it."""
    rank, world = share_of_slides()
    if world > 1 and not dist.is_initialized():
        if "MASTER_ADDR" not in os.environ:
            raise InputError(
                f"RANK={rank} WORLD_SIZE={world} in the environment, but no MASTER_ADDR: processes of one run "
                "must see each other; start them with torchrun, or one without RANK and WORLD_SIZE"
            )
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            PROCESSES[:] = [
                dist.new_group(backend="gloo", timeout=timedelta(days=2))
            ]  # a part may take hours
        except (RuntimeError, ValueError) as e:  # no port, no network, no such host
            raise InputError(
                f"process {rank} of {world} can't reach the others ({str(e).splitlines()[0]})"
            ) from None
    return rank, world


def of_all(value):
    """[value of each process], in all of them, when the last has come here."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(values, value, PROCESSES[0])
    except RuntimeError:
        raise InputError(
            "another process of this run has ended, and says why; the same command goes on from here"
        ) from None
    return values


def wait_for_others(world):
    """Under torchrun, which stops all processes as soon as one ends with a status that is not 0, end together."""
    if world > 1 and "MASTER_ADDR" in os.environ:
        join_processes()
        of_all(None)


def by_first(function):
    """What function returns in the first process, in all of them; what it refuses there ends them all, in one line."""
    if not dist.is_initialized():
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
    """make(cohort, slides, o) -> {slide: why it failed}, each of several processes its part of the slides."""
    rank, world = o.share
    failed = {
        name: why
        for part in of_all(make(cohort, slides[rank::world], o, *into))
        for name, why in part.items()
    }
    return {name: failed[name] for name in slides if name in failed}


@contextmanager
def one_voice(o, shared):
    """A context for a command: of several processes (o.share) the first prints, the others only by `say`. InputError where
    the command, o.verb, is not one of those that are `shared` out."""
    if o.verb in shared:
        o.share = join_processes()
    elif os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment: {o.verb} is one process; several share "
            f"{', '.join(shared)} and the steps of tiling.py: leave torchrun out"
        )
    with redirect_stdout(None) if dist.is_initialized() and dist.get_rank() else nullcontext():
        yield
    if dist.is_initialized():
        dist.destroy_process_group()


def say(text):
    """Print a line that each process has to say."""
    print(text, file=sys.stdout or sys.__stdout__, flush=True)


def log_path(folder, share):
    """log.jsonl, a line for each piece of work, or the part of it that one of several processes writes."""
    return folder / ("log-{}-of-{}.jsonl".format(*share) if share[0] else "log.jsonl")
