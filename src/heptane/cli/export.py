"""``heptane export``: a run's model as ONNX or for ``torch.export``, checked against the model."""

from __future__ import annotations

import argparse
import sys


def export(flags: argparse.Namespace) -> int:
    """Export as the flags say; returns the exit code."""
    from heptane.session.finished.export import export as write
    from heptane.session.finished.load_run import load_run

    run = load_run(flags.run)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    done = write(run, flags.out, flags.to, flags.sample or None, flags.force)
    on = "real samples" if done.real else "random inputs"
    print(f"{done.path}: outputs differ by at most {done.difference:.2g} from the model's, on {done.samples} {on}")
    print(f"{done.about}: how inputs are prepared, and what the outputs mean")
    return 0
