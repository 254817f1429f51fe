"""``python -m heptane.distributed.worker TASK ANSWER``: one worker of :func:`heptane.distributed.launch.launch`."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import torch

from heptane.base.device import default_device
from heptane.distributed.launch import PARENT, apply_torch_settings, record_failure
from heptane.distributed.workers import join_group

LOOK_SECONDS = 0.5


def main(task: str, answer: str) -> None:
    """Run the pickled call ``task``; rank 0 writes its result to ``answer``. Errors are recorded for the launcher."""
    end_with_parent(Path(task).parent)
    try:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        # written by our own parent process
        function, kwargs, timeout_seconds, settings = torch.load(task, weights_only=False, mmap=True)
        apply_torch_settings(settings)
        device = kwargs.get("device") or default_device()
        join_group(torch.device(device).type, timeout_seconds)
        result = function(**kwargs)
        if torch.distributed.get_rank() == 0:
            from heptane.distributed import pickling

            pickling.write(result, answer)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException as error:
        record_failure(error, Path(task).parent)
        _exit(1)
    _exit(0)


def end_with_parent(folder: Path) -> None:
    """Exit when the launcher is gone, for whatever reason, and remove the call's folder: nobody else would."""
    parent = os.getppid()
    launcher = int(os.environ.get(PARENT, parent))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(LOOK_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="heptane-parent", daemon=True).start()


def _exit(code: int) -> NoReturn:
    """Exit at once: a DDP wrapper that a traceback still holds can abort a normal exit and hide its code."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
