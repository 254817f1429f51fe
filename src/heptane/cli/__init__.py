"""The command ``heptane train | race | evaluate | predict | export | layers | tricks | data inspect | demo``.

Exit codes: 0 done; 1 failed; 2 wrong input; 3 target not reached; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from heptane.base.errors import InputError
from heptane.base.progress import progress_shown
from heptane.cli.flags import make_parser
from heptane.session.interruption import Interruption

DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO)
DONE, FAILED, WRONG_INPUT, NOT_REACHED, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser()
    try:
        with Interruption(active=True), progress_shown():  # SIGTERM and SIGUSR1 act like Ctrl-C
            flags = parser.parse(list(sys.argv[1:] if arguments is None else arguments))
            command = getattr(import_module(f"heptane.cli.{flags.command}"), flags.command)
            return int(command(flags))
    except InputError as error:
        print(f"heptane: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_INPUT
    except FloatingPointError as error:
        print(f"heptane: training failed: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("heptane: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `heptane tricks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = error.filename or "a file"
        print(f"heptane: {where}: {error.strerror}: free disk space, or choose another folder", file=sys.stderr)
        return FAILED
