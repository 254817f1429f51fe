"""Robustness against 10,000 mutated files and 10,000 random sets of flags: ``make fuzz``.

Files are checkpoints, weights (safetensors and ``.pth``), ``.npz``, IDX and images, mutated by bit flips, cuts,
copies and extreme numbers. Flags come from Hypothesis: valid and invalid values for each field of the settings and
tricks, on a tiny data set. Success and a single clear error are allowed. Failures are any other exception, more than
5 s, more than 1 GiB, and an incomplete output folder. Failing inputs are saved in ``tests/regressions``, and the
tests try them from then on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from fuzz_files import fuzz_files
from fuzz_flags import fuzz_flags
from fuzz_readers import READERS
from results import save

REGRESSIONS = Path(__file__).parents[1] / "tests" / "regressions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=11_000)
    parser.add_argument("--flags", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(READERS))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    began = time.time()
    files = fuzz_files(wanted.files, wanted.seed, wanted.kinds.split(","), REGRESSIONS)
    flags = fuzz_flags(wanted.flags, wanted.seed) if wanted.flags else {"command_lines": 0, "failures": []}
    for failure in [*files["failures"], *flags["failures"]]:
        print(json.dumps(failure, indent=1))
    content = {"files": files, "flags": flags, "seed": wanted.seed, "seconds": time.time() - began}
    save("fuzz", "what is done with mutated files and with generated flags: failures", content)
    sys.exit(bool(files["failures"] or flags["failures"]))


if __name__ == "__main__":
    main()
