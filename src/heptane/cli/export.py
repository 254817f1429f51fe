"""``heptane export``: export a run's model to ONNX or ``torch.export``, and check it."""

from __future__ import annotations

import argparse
import sys


def export(flags: argparse.Namespace) -> int:
    """Export; returns the exit code."""
    from heptane.session.finished.export import export as write
    from heptane.session.finished.load_run import load_run

    run = load_run(flags.run)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    done = write(run, flags.out, flags.to, flags.sample or None, flags.force)
    on = "real samples" if done.real else "random inputs"
    print(f"{done.path}: largest difference from the model's outputs {done.difference:.2g}, on {done.samples} {on}")
    print(f"{done.about}: describes preprocessing and outputs")
    return 0
