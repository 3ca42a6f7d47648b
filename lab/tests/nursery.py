"""Run commands in forked children, so that importing torch is paid once: `python -m
lab.tests.nursery ERRORS`.

Each line of stdin is a JSON list: program, argv, delay, signal, processes. Children are forked as
torchrun would start them; with a delay, the first gets the signal so many seconds after it began. A
line of stdout answers each: the exit status that is farthest from 0, and the seconds it took.
ERRORS gets what the children wrote to stderr.
"""

import importlib
import json
import os
import socket
import sys
import time

import matplotlib.pyplot  # noqa: F401
import torch._dynamo  # noqa: F401  what the first optimizer imports

from lab.commands.start import run
from lab.show import plots

plots.PICTURE_DPI = 50  # of few pixels, before others take it from there


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def become(program, argv, errors, begun):
    """Be the command: this child's end is the command's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    main = importlib.import_module(f"lab.commands.{program}").main

    def begin():
        os.write(begun, b"x")
        return main(argv)

    try:
        run(lambda: begin)
    except SystemExit as end:
        os._exit(end.code)


def bear(program, argv, processes, errors, begun):
    """Fork the processes of a command -> their ids."""
    port = free_port()
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            if processes > 1:
                os.environ.update(
                    RANK=str(rank),
                    WORLD_SIZE=str(processes),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )
            become(program, argv, errors, begun)
        pids.append(pid)
    return pids


def main(errors):
    for program in ("tiling", "he2rna", "histcode"):
        package = importlib.import_module(f"lab.commands.{program}")
        for verb in package.VERBS:
            importlib.import_module(f"{package.__name__}.{verb}")
    reader, begun = os.pipe()
    for line in sys.stdin:
        program, argv, delay, number, processes = json.loads(line)
        pids = bear(program, argv, processes, errors, begun)
        for _ in pids:
            os.read(reader, 1)
        start = time.time()
        if delay is not None:
            time.sleep(delay)
            os.kill(pids[0], number)
        status = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps([max(status, key=abs), time.time() - start]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
