"""Memory and open files over an hour of training with two workers, checkpoints and resumes: ``make soak``.

Two workers train under one launcher, save every 50 steps, and are stopped by SIGTERM and resumed every twenty
minutes. Their resident memory and open files are read every few seconds. A slope is fitted to each stretch between
two stops, without its first ten minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from heptane.session.checkpoints.checkpoint import find_newest
from results import save

PIECE_SECONDS, EVERY_SECONDS, WARM_UP_SECONDS = 1200.0, 5.0, 600.0  # allocators settle for some minutes


def workers_of(pid: int) -> list[int]:
    """The training processes below ``pid``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if b"heptane.distributed.worker" in command and ancestor(int(entry.name), pid):
            found.append(int(entry.name))
    return sorted(found)


def ancestor(pid: int, wanted: int) -> bool:
    while pid > 1:
        if pid == wanted:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False


def look(pid: int) -> tuple[float, int]:
    """Resident memory in MiB, and number of open files."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


def piece(out: Path, resume: bool, seconds: float) -> dict[str, Any]:
    """Run until the next stop."""
    if resume:
        command = ["train", "--resume", str(out)]
    else:
        # few evaluations: the history has a record of each, and grows by it
        command = ["train", "--data", "digits", "--model", "resnet", "--epochs", "1000000", "--workers", "2"]
        command += ["--tricks", "recommended", "--mixup.alpha", "0.2", "--batch-size", "64", "--checkpoint-every", "50"]
        command += ["--evaluate-every-epochs", "50", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (out.parent / "log").open("ab") as log:
        running = subprocess.Popen([sys.executable, "-m", "heptane.cli", *command], stdout=log, stderr=log, env=environment)
    began, looks = time.monotonic(), []
    while time.monotonic() - began < seconds:
        time.sleep(EVERY_SECONDS)
        if running.poll() is not None:
            raise RuntimeError((out.parent / "log").read_text()[-3000:])
        try:
            seen = [look(pid) for pid in workers_of(running.pid)]
        except OSError:
            continue
        if len(seen) == 2:
            looks.append((time.monotonic() - began, sum(m for m, _ in seen), sum(f for _, f in seen)))
    running.send_signal(signal.SIGTERM)
    code = running.wait(300)
    saved, _ = find_newest(out / "checkpoints")
    assert saved is not None
    late = np.array([entry for entry in looks if entry[0] > WARM_UP_SECONDS])
    return {
        "exit_code": code,
        "step": saved.facts["step"],
        "mebibytes": float(np.median(late[:, 1])),
        "files": float(np.median(late[:, 2])),
        "mebibytes_per_hour": slope(late[:, 0], late[:, 1]),
        "files_per_hour": slope(late[:, 0], late[:, 2]),
        "looks": [[round(value, 2) for value in entry] for entry in looks[::6]],
    }


def slope(seconds: Any, values: Any) -> list[float]:
    """Slope per hour, and twice its standard error."""
    (rate, _), covariance = np.polyfit(seconds / 3600, values, 1, cov=True)
    return [float(rate), 2 * float(np.sqrt(covariance[0, 0]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    flags = parser.parse_args()
    pieces: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="heptane-soak-") as folder:
        out, began = Path(folder, "run"), time.monotonic()
        while time.monotonic() - began < 60 * flags.minutes:
            pieces.append(piece(out, bool(pieces), PIECE_SECONDS))
            print({key: value for key, value in pieces[-1].items() if key != "looks"}, flush=True)
            content = {"minutes": (time.monotonic() - began) / 60, "pieces": pieces, **over_all(pieces)}
            save("soak", "memory and open files of two workers in an hour with checkpoints and resumes", content)


def over_all(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Summary of all pieces: the median slope, and the difference between the medians of the first and last."""
    return {
        "mebibytes_per_hour": statistics.median(p["mebibytes_per_hour"][0] for p in pieces),
        "files_per_hour": statistics.median(p["files_per_hour"][0] for p in pieces),
        "mebibytes_first_last": [pieces[0]["mebibytes"], pieces[-1]["mebibytes"]],
        "files_first_last": [pieces[0]["files"], pieces[-1]["files"]],
    }


if __name__ == "__main__":
    main()
