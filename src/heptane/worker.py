"""``python -m heptane.worker TASK ANSWER``: one worker of :func:`heptane.tricks.data_parallel.launch`."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch

from heptane.tricks.data_parallel import join_group


def main(task: str, answer: str) -> None:
    """Run the pickled call; rank 0 writes what it returned, and the first to fail writes why."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    function, kwargs, path = torch.load(task, weights_only=False, mmap=True)  # written by our own parent process
    sys.path[:] = path
    join_group("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = function(**kwargs)
    except BaseException:
        with Path(task).with_name("failure.txt").open("a") as file:
            file.write(traceback.format_exc())
        raise
    if torch.distributed.get_rank() == 0:
        import cloudpickle

        torch.save(result, answer, pickle_module=cloudpickle)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
