"""Export a trained model to ONNX or ``torch.export``, and check the export against the model."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_choice, one_line
from heptane.base.lazy import torch
from heptane.base.progress import working
from heptane.base.storage import write_text
from heptane.base.tree import first_tensor, select_rows
from heptane.model.forward import unwrapped
from heptane.session.finished.predictions import run_model
from heptane.session.run_folder import clean

if TYPE_CHECKING:
    from heptane.session.finished.load_run import LoadedRun

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4  # largest difference of an output, relative to the largest output (at least 1)
SAMPLES = (2, 5)  # sizes of the checked batches: the one used for export, and another


@dataclass(frozen=True)
class Exported:
    """The written files, and the largest difference from the model's outputs."""

    path: Path
    about: Path
    difference: float
    samples: int
    real: bool


def export(run: LoadedRun, path: Any, to: str, sample: Any, force: bool) -> Exported:
    """Export ``run``'s model, check it, and write ``PATH.json``; see :meth:`heptane.LoadedRun.export`."""
    check_choice("to", to, ENDINGS)
    file = Path(path) if path is not None else run.folder / f"model{ENDINGS[to]}"
    if file.suffix.lower() != ENDINGS[to]:
        raise InputError(f"{file}: a file for {to} must end in {ENDINGS[to]}")
    about = file.with_name(f"{file.name}.json")
    if not file.parent.is_dir():
        raise InputError(f"cannot write {file}: there is no folder {file.parent}")
    for there in (file, about):
        if there.exists() and not force:
            raise InputError(f"{there} exists: choose another file, or replace it with --force (force=True)")
    inputs, real = _inputs(run, sample)
    model = unwrapped(run.model)
    model.eval()
    aside = file.with_name(f".{file.name}{ENDINGS[to]}")
    try:
        with working(f"exporting the model for {to}"), _quiet():
            write, read = (_write_onnx, _run_onnx) if to == "onnx" else (_write_torch, _run_torch)
            try:
                write(model, select_rows(inputs, slice(0, SAMPLES[0])), aside)
            except InputError:
                raise
            except Exception as error:  # exporters raise many types for code they cannot trace
                raise InputError(f"this {type(model).__name__} cannot be exported for {to}: {one_line(error)}") from error
            difference = max(_difference(run, select_rows(inputs, slice(0, size)), read, aside) for size in SAMPLES)
        aside.replace(file)
    finally:
        for left in (aside, aside.with_name(f"{aside.name}.data")):
            left.unlink(missing_ok=True)
    facts = describe(run, file, to, inputs) | {"largest_difference": difference}
    write_text(about, json.dumps(clean(facts), indent=1) + "\n")
    return Exported(file, about, difference, sum(SAMPLES), real)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings; the result is checked anyway."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def describe(run: LoadedRun, file: Path, to: str, inputs: Any) -> dict[str, Any]:
    """What users of the file need: the input's shape and preprocessing, and the meaning of the outputs."""
    from heptane.base.version import __version__

    data = run.record.get("data") or {}
    return {
        "file": file.name,
        "format": to,
        "heptane": __version__,
        "input": {"name": "input", "dtype": "float32", "shape": ["batch", *first_tensor(inputs).shape[1:]]},
        "output": {"name": "output", "kind": run.outputs, "activation": {"classes": "softmax", "labels": "sigmoid"}.get(
            run.outputs, "none")},
        "classes": list(run.classes),
        "preprocess": data.get("preprocess"),
        "metrics": run.metrics,
        "step": run.step,
    }  # fmt: skip


def _inputs(run: LoadedRun, sample: Any) -> tuple[torch.Tensor, bool]:
    """Inputs for the check, and whether they are real samples."""
    from heptane.session.finished.predictions import batches_of

    if sample is not None:
        inputs: Any = next(inputs for _, inputs in batches_of(run, sample, SAMPLES[-1], None))
    else:
        shape = run.record["model"].get("input_shape") or (run.record.get("data") or {}).get("input_shape")
        if not shape:
            raise InputError("the run's record has no input shape: pass sample=, some inputs for the model")
        inputs = torch.randn(SAMPLES[-1], *shape, generator=torch.Generator().manual_seed(0))
    if not isinstance(inputs, torch.Tensor):
        raise InputError("a model with dict inputs cannot be exported here: use run.model with torch.export")
    while len(inputs) < SAMPLES[-1]:
        inputs = torch.cat([inputs, inputs])
    dtype = next((p.dtype for p in run.model.parameters() if p.is_floating_point()), torch.float32)
    return (inputs.to(dtype) if inputs.is_floating_point() else inputs)[: SAMPLES[-1]], sample is not None


def _write_onnx(model: torch.nn.Module, inputs: torch.Tensor, file: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f'export to onnx needs {error.name}, which is missing: pip install "heptane[export]"') from error
    settings: dict[str, Any] = {"dynamic_shapes": _dynamic(model), "external_data": False, "verbose": False}
    settings |= {"input_names": ["input"], "output_names": ["output"]}
    torch.onnx.export(model, (inputs,), str(file), dynamo=True, **settings)


def _dynamic(model: torch.nn.Module) -> Any:
    """A dynamic batch dimension."""
    return ({0: torch.export.Dim("batch", min=1)},)


def _run_onnx(file: Path, inputs: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


def _write_torch(model: torch.nn.Module, inputs: torch.Tensor, file: Path) -> None:
    program = torch.export.export(model, (inputs,), dynamic_shapes=_dynamic(model))
    torch.export.save(program, file)


def _run_torch(file: Path, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output: Any = torch.export.load(file).module()(inputs)
    return (
        output if isinstance(output, torch.Tensor) else next(iter(output.values() if hasattr(output, "values") else output))
    )


def _difference(run: LoadedRun, inputs: torch.Tensor, read: Any, file: Path) -> float:
    """The largest difference between the export's and the model's outputs.

    Raises:
        InputError: it exceeds the tolerance.
    """
    expected = run_model(run, inputs)
    try:
        found = read(file, inputs).float()
    except Exception as error:
        raise InputError(f"the exported model fails on {len(inputs)} samples: {one_line(error)}") from error
    if found.shape != expected.shape:
        raise InputError(f"the exported model gives {tuple(found.shape)}, the model {tuple(expected.shape)}")
    difference = float((found - expected).abs().max())
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not math.isfinite(difference) or difference > limit:
        raise InputError(
            f"the exported model differs from the model by {difference:.3g}, more than {limit:.3g}: not written"
        )
    return difference
