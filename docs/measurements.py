"""Read result files, and make the page of all measurements from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from heptane.pretrained.models import resnet

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HEADER = ["| what | result | file |", "|---|---|---|"]


def all_figures() -> str:
    """The page of all measurements."""
    parts = (_accuracy, _peers, _overhead, _gpu, _transfer, _scaling, _robustness, _imports)
    lines = [
        "# Measurements",
        "",
        "All claims about speed, accuracy and robustness, each with its evidence. Every row comes from",
    ]
    lines += [
        "a file in [`benchmarks/results/`](../benchmarks/results) that records the command, commit, machine, seeds and"
    ]
    lines += ["spread. Experiments that failed are in the [log](../benchmarks/LOG.md).", "", *HEADER]
    lines += [row for part in parts for row in part()]
    return "\n".join(lines).replace("](benchmarks/", "](../benchmarks/") + "\n"


def read(name: str) -> dict[str, Any] | None:
    """The content of a result file, or None if it does not exist yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def link(name: str) -> str:
    return f"[{name}.json](benchmarks/results/{name}.json)"


def _accuracy() -> list[str]:
    rows = []
    for name, what in (("small", "small ResNet, 4 epochs, progressive resizing"), ("wide", "wide ResNet, 16 epochs")):
        if found := read(name):
            test, seconds = found["test_accuracy"], found["train_seconds"]["median"]
            count = len(found["seeds"])
            of = f" ± {100 * test['std']:.2f} (mean ± std of {count} seeds)" if count > 1 else " (one seed)"
            figure = f"{100 * test['mean']:.2f}%{of}"
            machine = f"{found['environment']['threads']} threads, {found['environment']['cpu']}"
            rows.append(
                f"| Fashion-MNIST test accuracy, {what}, {seconds:.0f} s of training ({machine}) | {figure} | {link(name)} |"
            )
    return rows


def _overhead() -> list[str]:
    found = read("overhead")
    rows = []
    for case, content in (found["cases"] if found else {}).items():
        if case.startswith("resnet") and content.get("num_parameters") != num_parameters(resnet()):
            continue  # measured on an earlier network
        ratios = ", ".join(f"{goal['ratio']:.2f}x that of {arm}" for arm, goal in content["ratios_of_medians"].items())
        rows.append(f"| step time (lower is better), {case} | {ratios} | {link('overhead')} |")
    return rows


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _transfer() -> list[str]:
    return [*_features(), *_pretrained(), *_transfer_speedup()]


def _features() -> list[str]:
    """The speed-up by caching the features of frozen layers."""
    found = read("features")
    if not found:
        return []
    parts = [f"{arm['times_faster']:.0f}x {arm['name']}" for arm in found["arms"][1:]]
    what = f"speed-up by a feature cache, {found['epochs']} epochs of a head on a frozen EfficientNet-lite0"
    return [f"| {what} | {', '.join(parts)} | {link('features')} |"]


def _pretrained() -> list[str]:
    found = read("transfer")
    if not found:
        return []
    parts = [f"{percent(arm['test_accuracy'])} {arm['name']}" for arm in found["arms"]]
    what = f"EfficientNet-lite0 on 1,000 images of Fashion-MNIST, test accuracy, {len(found['seeds'])} seeds"
    return [f"| {what} | {', '.join(parts)} | {link('transfer')} |"]


def _transfer_speedup() -> list[str]:
    """The speed-up by pretrained weights."""
    found = read("transfer_time")
    if not found:
        return []
    ratio = found["times_faster"]
    what = "speed-up by ImageNet weights, EfficientNet-lite0 on 1,000 images: time to the best accuracy from scratch"
    measured = f"{ratio['median']:.0f}x ({ratio['min']:.0f}x to {ratio['max']:.0f}x, {len(found['seeds'])} seeds)"
    return [f"| {what} | {measured} | {link('transfer_time')} |"]


def transfer_measured() -> str:
    """The measurements on the page of transfer."""
    found = read("transfer")
    if not found:
        return ""
    lines = [
        f"EfficientNet-lite0, {found['data']}; {len(found['seeds'])} seeds, learning rates of all arms tuned on the "
        "validation split with equal effort.",
        "",
    ]
    rows = [
        (a["name"], a["epochs"], f"{a['rate']:g}", percent(a["test_accuracy"]), f"{a['train_seconds']['median']:.0f}")
        for a in found["arms"]
    ]
    lines += table(("start", "epochs", "learning rate", "test accuracy", "training seconds"), rows)
    machine = f"{found['environment']['threads']} threads, {found['environment']['cpu']}"
    where = "[transfer.json](../../benchmarks/results/transfer.json)"
    return "\n".join([*lines, "", f"{where}, `python benchmarks/transfer.py`, {machine}."])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def percent(values: dict[str, Any]) -> str:
    return f"{100 * values['mean']:.1f}% ± {100 * (values['std'] or 0):.1f}"


def _gpu() -> list[str]:
    found = read("gpu")
    if not found:
        return []
    steps = found["milliseconds_per_step"]["resnet_wide"]
    arms = ("tutorial, fp32", "heptane, fp32", "heptane, bf16", "heptane, bf16, graphs", "careful, bf16, graphs")
    figures = "; ".join(f"{arm}: {steps[arm]['median']:.2f} ms" for arm in arms)
    return [f"| step time on {found['environment']['gpus'][0]}, wide ResNet, batch 256 | {figures} | {link('gpu')} |"]


def _imports() -> list[str]:
    found = read("imports")
    if not found:
        return []
    return [f"| time to import heptane after torch | {found['added_seconds']:.3f} s | {link('imports')} |"]


def _scaling() -> list[str]:
    rows = []
    if found := read("scaling"):
        what = "throughput of 2 workers with 1 thread each over 1 worker with 2 threads, small ResNet"
        rows.append(f"| {what} | {found['throughput_ratio']:.2f}x | {link('scaling')} |")
    if found := read("scaling_model"):
        what = f"largest error of the predicted step time on 2 to 4 hosts, {len(found['points'])} points"
        rows.append(f"| {what} | {100 * found['largest_error']:.0f}% | {link('scaling_model')} |")
    return rows


def _robustness() -> list[str]:
    """Killed runs, mutated files, checkpoints, and memory in long runs."""
    rows = []
    if found := read("torture"):
        figure = f"{found['equal']} of {found['runs']} ({found['killed']} kills)"
        what = "runs killed at random moments and resumed: bitwise equal to an uninterrupted run"
        rows.append(f"| {what} | {figure} | {link('torture')} |")
    if found := read("fuzz"):
        files, flags = found["files"], found["flags"]
        what = f"failures in {files['files']:,} mutated files and {flags['command_lines']:,} random sets of flags"
        rows.append(f"| {what} | {len(files['failures']) + len(flags['failures'])} | {link('fuzz')} |")
    if found := read("checkpoint"):
        shares = ", ".join(f"{m['share_at_30_s']:.2%} ({name})" for name, m in found["models"].items())
        rows.append(
            f"| cost of a checkpoint every 30 s, as a share of the training time | {shares} | {link('checkpoint')} |"
        )
    if found := read("soak"):
        (first, last), slope = found["mebibytes_first_last"], found["mebibytes_per_hour"]
        figure = (
            f"{first:.0f} MiB at the start, {last:.0f} MiB at the end, {slope:+.1f} MiB per hour; open files "
            f"{found['files_per_hour']:+.1f} per hour"
        )
        rows.append(
            f"| memory of two workers over {found['minutes']:.0f} minutes of checkpoints and resumes | {figure} "
            f"| {link('soak')} |"
        )
    return rows


PEER_NAMES = {"plain": "plain PyTorch"}
PEERS = {"peers": "with 16-bit arithmetic", "peers-fp32": "without 16-bit arithmetic"}  # a race on each machine


def _peers() -> list[str]:
    """The speed-up over each other library, per machine."""
    rows = []
    for name, machine in PEERS.items():
        if not (found := read(name)):
            continue
        ratios = [
            f"{row['times_heptane']:.1f}x over {PEER_NAMES.get(peer, peer)}"
            if row["times_heptane"]
            else f"{PEER_NAMES.get(peer, peer)} did not reach it"
            for peer, row in found["peers"].items()
            if peer != "heptane"
        ]
        count = len(found["seeds"])
        seeds = f"{count} seed{'s' if count > 1 else ''}"
        what = f"speed-up to {found['target']:.1%} validation accuracy, small ResNet, {machine} ({seeds})"
        rows.append(f"| {what} | {', '.join(ratios)} | {link(name)} |")
    return rows
