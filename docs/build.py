"""Generate the pages of the tricks, the recipes and the measurements, and the figures of the README.

``python docs/build.py`` writes them from docstrings and result files. ``tests/test_docs.py`` checks that they are current.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import nn

from heptane.cli.tricks import TEXTS, sections, title
from heptane.pretrained.models import resnet
from heptane.race.statistics import student_quantile
from heptane.session.settings import field_docs
from heptane.tricks import KINDS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECIPES = ("images", "text", "translation", "speech", "tabular")
EXAMPLES = {
    "data_parallel": ["data_parallel"],
    "lr_scaling": ["scale_lr", "warmup"],
    "cyclical": ["one_cycle", "triangular"],
    "mixup": ["mixup_batch"],
    "label_smoothing": ["smooth_labels", "soft_cross_entropy"],
    "transfer": ["load_weights", "freeze", "param_groups", "train_mode"],
    "mixed_precision": ["precision"],
}


def pages() -> dict[Path, str]:
    """All generated files with their content."""
    found = {ROOT / "docs" / "tricks" / f"{name}.md": page(name) for name in KINDS}
    for path, mark, content in (
        (ROOT / "README.md", "race", race_caption()),
        (ROOT / "README.md", "seven", seven()),
        (ROOT / "docs" / "scaling.md", "scaling", scaling()),
    ):
        head, _, rest = found.get(path, path.read_text()).partition(f"<!-- {mark} -->")
        _, _, tail = rest.partition(f"<!-- /{mark} -->")
        found[path] = f"{head}<!-- {mark} -->\n{content}<!-- /{mark} -->{tail}"
    made = (("papers", papers()), ("peers", peers()), ("gpu", gpu()))
    found |= {ROOT / "docs" / f"{name}.md": text for name, text in made if text}
    found[ROOT / "docs" / "recipes.md"] = recipes()
    found[ROOT / "docs" / "measured.md"] = all_figures()
    found[ROOT / "src" / "heptane" / "cli" / "measured.json"] = json.dumps(tricks_measured(), indent=1) + "\n"
    return found


def tricks_measured() -> dict[str, Any]:
    """The measured effect and cost of each trick, for the README and ``heptane tricks``."""
    about, rows = [], {}
    if race := read("tricks"):
        plain = next(arm for arm in race["arms"] if arm["name"] == "plain")
        for effect in race["effects"]:
            alone = next((arm for arm in race["arms"] if list(arm["tricks"]) == [effect["trick"]]), None)
            rows[effect["trick"]] = {
                "step": step_ratio(alone, plain) if alone else None,
                "words": effect_words(effect),
                "file": "tricks.json",
            }
        for missing in race["not_raced"]:
            why = missing["why"].split("; ")[-1].replace("bf16 left out: this processor has", "the CPU of this race has")
            rows[missing["trick"]] = {"step": None, "words": f"not measured: {why}", "file": "tricks.json"}
        where, seeds = race["environment"], len(race["plan"]["seeds"])
        about.append(
            f"Measured: speed-up to {race['target']['value']:.0%} validation accuracy, averaged over plain training with "
            "and without the trick, and all tricks with and without it; "
            f"{race['model']['name']} on {race['data']['name']}, {seeds} seeds, {where['threads']} CPU "
            f"threads, {where['cpu']} (benchmarks/results/tricks.json). Not settled: the interval includes 1x."
        )
    if found := read("transfer_time"):
        ratio, seeds = found["times_faster"], len(found["seeds"])
        rows["transfer"] = {
            "step": None,
            "words": f"{ratio['median']:.0f}x ({ratio['min']:.0f}x to {ratio['max']:.0f}x) to the best accuracy of 10 "
            "epochs from scratch on 1,000 images; all but the last block frozen",
            "file": "transfer_time.json",
        }
        about.append(f"Transfer: EfficientNet-lite0, {seeds} seeds (benchmarks/results/transfer_time.json).")
    if found := read("scaling"):
        rows["data_parallel"] = {
            "step": None,
            "words": f"{found['throughput_ratio']:.2f}x with 2 processes on one 2-core CPU",
            "file": "scaling.json",
        }
        about.append("Data parallel: samples per second, small ResNet (benchmarks/results/scaling.json).")
    return {"about": [*about, "On your data: heptane race"], "tricks": rows}


def effect_words(effect: dict[str, Any]) -> str:
    """The speed-up by one trick with its interval, or that it is not settled."""
    low, high = effect["interval"]
    between = f"{low:.2f}x to {high:.2f}x"
    if effect["verdict"] in ("helps", "hurts"):
        return f"{effect['estimate']:.2f}x ({between})"
    return f"{effect['verdict']} ({between})"


def step_ratio(arm: dict[str, Any], plain: dict[str, Any]) -> list[float] | None:
    """Step time of ``arm`` over that of ``plain``: the geometric mean over paired seeds, with a 95% interval by Student's t.

    None below two seeds.
    """
    seconds = [
        {
            run["seed"]: run["clocks"]["train"] / run["steps"]["done"]
            for run in runs
            if run["clocks"] and run["steps"]["done"]
        }
        for runs in (arm["runs"], plain["runs"])
    ]
    logs = [math.log(seconds[0][seed] / seconds[1][seed]) for seed in seconds[0] if seed in seconds[1]]
    if len(logs) < 2:
        return None
    half = student_quantile(0.05, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return [round(math.exp(fmean(logs) + side * half), 2) for side in (0, -1, 1)]


def page(name: str) -> str:
    """The page of one trick: its docstring, settings, examples and measurements."""
    kind, flag = KINDS[name], name.replace("_", "-")
    heading, _, summary = title(name).partition(": ")
    lines = [f"# {heading}", "", f"{summary[:1].upper()}{summary[1:]}", ""]
    for heading, text in sections(name, joined=False).items():
        lines += [f"## {heading}", "", f"```\n{text}\n```" if heading == "Equation" else _markdown(text), ""]
    lines += ["## Settings", "", f"`hp.Tricks({name}=hp.{kind.__name__}(...))`, or flags of `heptane train`:", ""]
    lines += ["| field | flag | default | |", "|---|---|---|---|"]
    docs = field_docs(kind)
    for field in fields(kind):
        text = docs[field.name].replace("|", "\\|")
        lines.append(f"| `{field.name}` | `--{flag}.{field.name.replace('_', '-')}` | `{field.default!r}` | {text} |")
    lines += ["", "## In your own loop", ""]
    for example in EXAMPLES[name]:
        lines += ["```python", (ROOT / "examples" / f"{example}.py").read_text().rstrip(), "```", ""]
    measured = MEASURED.get(name)
    if measured and (text := measured()):
        lines += ["## Measured", "", text, ""]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    return re.sub(r":(?:class|func|meth):`~?([^`]+)`", r"`\1`", text).replace("``", "`")


HEADER = ["| what | result | file |", "|---|---|---|"]


SHOWN = {  # arguments in the README's table, without which a trick does little
    "data_parallel": "workers=2",
    "lr_scaling": "reference_batch=32",
    "transfer": 'weights="efficientnet-lite0"',
}


def seven() -> str:
    """The README's table: what each trick does, what it was measured to bring, and its name in ``hp.Tricks``."""
    found = tricks_measured()
    lines = ["| trick | what it does | measured | `hp.Tricks(...)` |", "|---|---|---|---|"]
    for name, kind in KINDS.items():
        label = name.replace("_", " ").replace("lr ", "learning-rate ").replace("cyclical", "cyclical learning rate")
        words = found["tricks"][name]["words"] if name in found["tricks"] else "not measured"
        cells = (
            f"[{label}](docs/tricks/{name}.md)",
            TEXTS[name][0],
            words,
            f"`{name}=hp.{kind.__name__}({SHOWN.get(name, '')})`",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{line}  " for line in found["about"][:-1])]).rstrip() + "\n"


def race_caption() -> str:
    """The caption of the README's picture."""
    race = read("tricks")
    if not race or race["speedup"]["estimate"] is None:
        return ""
    found, machine = race["speedup"], race["environment"]
    low, high = found["interval"]
    speedup = f"{found['estimate']:.2f}x ({found['confidence']:.0%} interval {low:.2f}x to {high:.2f}x"
    task = f"Task: {race['model']['name']} on {race['data']['name']}"
    where = f"{machine['threads']} CPU threads, {machine['cpu']}"
    return (
        f"Speed-up to {race['target']['value']:.0%} validation accuracy with {len(race['effects'])} tricks (1cycle to "
        f"{race['plan']['peak']:g}x the plain learning rate), over the same loop without tricks:\n"
        f"**{speedup}, {found['num_seeds']} seeds)**. {task}, {where} ({link('tricks')}).\n"
    )


def picture() -> None:
    """Draw the README's picture from the result file of the race."""
    from heptane.race.pictures import accuracy_against_time

    if race := read("tricks"):
        path = ROOT / "docs" / "pictures" / "race.svg"
        path.parent.mkdir(exist_ok=True)
        both = [arm for arm in race["arms"] if arm["name"] in ("plain", "all")]
        path.write_text(accuracy_against_time({**race, "arms": both}).replace("<svg ", '<svg style="background: white" ', 1))


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
    parts = [f"{_percent(arm['test_accuracy'])} {arm['name']}" for arm in found["arms"]]
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


def _transfer_measured() -> str:
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
        (a["name"], a["epochs"], f"{a['rate']:g}", _percent(a["test_accuracy"]), f"{a['train_seconds']['median']:.0f}")
        for a in found["arms"]
    ]
    lines += table(("start", "epochs", "learning rate", "test accuracy", "training seconds"), rows)
    machine = f"{found['environment']['threads']} threads, {found['environment']['cpu']}"
    where = "[transfer.json](../../benchmarks/results/transfer.json)"
    return "\n".join([*lines, "", f"{where}, `python benchmarks/transfer.py`, {machine}."])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def _percent(values: dict[str, Any]) -> str:
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


def peers() -> str:
    """The page on other libraries, with a table per machine; empty before `make peers`."""
    races = {name: found for name in PEERS if (found := read(name))}
    if not races:
        return ""
    target = next(iter(races.values()))["target"]
    lines = ["# Comparison with other libraries", ""]
    lines += [
        "This page compares the time that heptane and other training libraries need to reach one target. The target is"
    ]
    lines += [
        f"{target:.2%} validation accuracy on Fashion-MNIST with a small ResNet: the best that plain PyTorch reached while"
    ]
    lines += ["its learning rate was tuned. Each library trains as its own documentation recommends"]
    lines += [
        "([loops.py](../benchmarks/peers/loops.py)). The learning rate or the length was tuned for each with equal effort"
    ]
    lines += [
        "([race.py](../benchmarks/peers/race.py)). Evaluation is not timed. The second machine reuses the tuning of the"
    ]
    lines += ["first, except for libraries that train in 16 bits on only one of them.", ""]
    for name, found in races.items():
        lines += _race_on(name, found)
    return "\n".join(lines)


def _race_on(name: str, found: dict[str, Any]) -> list[str]:
    """The results on one machine."""
    seeds, here = len(found["seeds"]), found["environment"]
    rows: list[tuple[Any, ...]] = []
    for peer, row in found["peers"].items():
        seconds = f"{row['seconds']['median']:.0f}" if row["seconds"] else "-"
        speedup = f"{row['times_heptane']:.2f}x" if row["times_heptane"] else "-"
        planned = row["planned_epochs"] or "open"
        reached = f"{seeds - row['missed']} of {seeds}"
        rows.append((PEER_NAMES.get(peer, peer), f"{row['rate']:.2g}", planned, seconds, reached, speedup))
    goals = [
        (against, f"at least {goal['at_least']}x", f"{goal['ratio']:.2f}x" if goal["ratio"] else "-")
        for against, goal in found["goals"].items()
    ]
    lines = [f"## A machine {PEERS[name]}", ""]
    lines += table(
        ("library", "learning rate", "epochs", "seconds, median", "runs at the target", "speed-up of heptane"), rows
    )
    lines += ["", *table(("speed-up over", "goal", "measured"), goals)]
    where = f"[{name}.json](../benchmarks/results/{name}.json), [every run](../benchmarks/results/{name}.jsonl)"
    return [*lines, "", f"{where}, `{found['command']}`, {here['threads']} threads, {here['cpu']}.", ""]


def gpu() -> str:
    """The page of GPU results: step times, whole runs and a race; empty before gpu.sh."""
    found, race = read("gpu"), read("gpu-race")
    if not found or not race:
        return ""
    card = ", ".join(found["environment"]["gpus"])
    lines = ["# GPU results", ""]
    lines += ["This page shows how fast heptane trains on a GPU, compared with hand-written loops. The GPU is one"]
    lines += [f"{card}, with PyTorch {found['environment']['torch']}; `benchmarks/gpu.sh OUT` repeats the measurements."]
    lines += [f"Note in the result file: {found['note']}", "", "## Time of a step", ""]
    lines += [
        f"Milliseconds per step at batch size {found['batch_size']}: the median, and the range over the rounds. *Tutorial*"
    ]
    lines += ["is a loop with a DataLoader in fp32. *Careful* keeps the data on the GPU and uses bf16 and channels last."]
    lines += ['*Graphs* adds CUDA graphs (`hp.Extras(compile="reduce-overhead")`).', ""]
    models = found["milliseconds_per_step"]
    rows = [(arm, *(_median_range(models[model][arm]) for model in models)) for arm in next(iter(models.values()))]
    lines += table(("loop", *models), rows)
    lines += [
        "",
        "heptane synchronizes with the GPU once per step to check for non-finite gradients (`on_nan`). The CPU then",
    ]
    lines += ["cannot run ahead of the GPU. This shows most with CUDA graphs, where the rest of a step is short.", ""]
    epochs, seeds = found["epochs"], len(found["seeds"])
    lines += [
        "## Whole runs",
        "",
        f"The wide ResNet on Fashion-MNIST, {epochs} epochs, {seeds} seeds. No tuning was done.",
        "",
    ]
    rows = [
        (name, _percent(row["test_accuracy"]), _median_range(row["train_seconds"]))
        for name, row in found["trainings of resnet_wide"].items()
    ]
    lines += table(("run", "test accuracy", "training seconds, median"), rows)
    lines += ["", "The times include warm-up, and the first run with CUDA graphs includes compilation.", ""]
    lines += ["## A race", "", f"The small ResNet, `{race['command']}`: {race['sentence']}", ""]
    lines += ["[gpu.json](../benchmarks/results/gpu.json), [gpu-race.json](../benchmarks/results/gpu-race.json).", ""]
    return "\n".join(lines)


def _median_range(values: dict[str, Any]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def scaling() -> str:
    """Measured and predicted step times with several workers, for the page on scaling."""
    lines = []
    if found := read("scaling_model"):
        points = [
            (
                p["hosts"],
                f"{p['megabits']} Mbit/s",
                f"{p['step']:.3f} s",
                f"{p['predicted']:.3f} s",
                f"{100 * p['error']:+.0f}%",
            )
            for p in found["points"]
        ]
        lines += table(("hosts", "link", "measured step", "predicted step", "error"), points)
        published = [(p["what"], f"{p['published']:.0%}", f"{p['predicted']:.0%}") for p in found["published"]]
        lines += ["", *table(("published result", "efficiency", "predicted"), published)]
        lines += [
            "",
            "[scaling_model.json](../benchmarks/results/scaling_model.json), `python benchmarks/scaling_model.py`.",
            "",
        ]
    if found := read("scaling"):
        parts = {
            name.removesuffix("_seconds").replace("not_hidden", "not overlapped with compute"): values
            for name, values in found["of_a_step_of_two_workers"].items()
        }
        named = ", ".join(f"{name} {1e3 * values['median']:.3g} ms" for name, values in parts.items())
        ratio = f"{found['throughput_ratio']:.2f}x the throughput of one worker with 2 threads"
        lines += [f"On a 2-core CPU, two workers with 1 thread each reach {ratio} (small ResNet, batch {found['batch']})."]
        lines += [f"Parts of a step: {named}."]
        lines += ["", "[scaling.json](../benchmarks/results/scaling.json), `python benchmarks/scaling.py`."]
    return "\n".join(["", *lines, ""]) if lines else ""


def papers() -> str:
    """The page on the papers' claims: a table, a plot and verdicts for each; empty before `make papers`."""
    found = [json.loads(path.read_text()) | {"name": path.stem} for path in sorted(RESULTS.glob("papers-*.json"))]
    if not found:
        return ""
    lines = ["# Claims of the papers, repeated in miniature", ""]
    lines += [
        "This page tests whether the main claim of each trick's paper holds on a small task: Fashion-MNIST, small networks,"
    ]
    lines += [
        "a few seeds. Only the direction of an effect is tested. Its size depends on the network and the data, so measure"
    ]
    lines += ["it on yours with `heptane race`. `make papers` repeats all experiments.", ""]
    for claim in found:
        arms = list(dict.fromkeys(row["arm"] for row in claim["rows"]))
        lines += [f"## {claim['claim']}", "", f"*Source*: {claim['source']}.", ""]
        lines += [f"| {claim['value']} | {' | '.join(arms)} |", f"|---|{'---|' * len(arms)}"]
        for setting in dict.fromkeys(row["setting"] for row in claim["rows"]):
            values = {row["arm"]: row["values"] for row in claim["rows"] if row["setting"] == setting}
            cells = [f"{fmean(values[arm]):.4f} ± {stdev(values[arm]):.4f}" if arm in values else "" for arm in arms]
            lines.append(f"| {setting} | {' | '.join(cells)} |")
        lines += ["", *(f"- {verdict}" for verdict in claim["verdicts"]), ""]
        where = f"../benchmarks/results/{claim['name']}"
        lines += [
            f"![{claim['value']}]({where}.svg)",
            "",
            f"[{claim['name']}.json]({where}.json), `{claim['command']}`.",
            "",
        ]
    return "\n".join(lines)


def recipes() -> str:
    """The page of recipes: the docstring of each and its results, if there are any yet."""
    lines = ["# Recipes", ""]
    lines += [
        "Each recipe is a complete training program for one task on real data, with its results. `make recipe-NAME` runs"
    ]
    lines += [
        "one in under 15 minutes on two cores, and `make recipes` runs all. With `--quick` a recipe takes a minute and"
    ]
    lines += [
        "writes no result file. Data and weights come from Debian and Python packages and are kept in heptane's cache",
        "folder.",
        "",
    ]
    for name in RECIPES:
        doc = ast.get_docstring(ast.parse((ROOT / "recipes" / f"{name}.py").read_text())) or ""
        heading, _, text = doc.partition("\n")
        lines += [f"## {heading.rstrip('.')}", "", _markdown(text.strip()), "", *_recipe_measured(name)]
    return "\n".join(lines)


def _recipe_measured(name: str) -> list[str]:
    """The results of one recipe: a table and verdicts."""
    script = f"[recipes/{name}.py](../recipes/{name}.py)"
    found = read(f"recipe-{name}")
    if not found:
        return [f"{script}; not measured yet: `make recipe-{name}`.", ""]
    metrics, count = list(found["metrics"]), len(found["seeds"])
    rows = [(arm, *(_mean_std(values.get(metric)) for metric in metrics)) for arm, values in found["arms"].items()]
    lines = table((f"{count} seed{'s' if count > 1 else ''}", *metrics), rows)
    lines += ["", *(f"- {verdict}" for verdict in found["verdicts"]), ""]
    here = found["environment"]
    where = f"[recipe-{name}.json](../benchmarks/results/recipe-{name}.json), `{found['command']}`"
    took = f", {found['seconds']} s in all" if "seconds" in found else ""
    lines += [f"{script}, {where}, {here['threads']} threads, {here['cpu']}{took}.", ""]
    return lines + (_images_confirmed() if name == "images" else [])


def _images_confirmed() -> list[str]:
    """The result of the recipe on images, on seeds that were not used to choose the arm."""
    found = read("transfer_time")
    if not found:
        return []
    ratio, gained = found["times_faster"], found["test_accuracy_gained"]
    return [
        f'The arm "last block" was chosen with the seeds above. On {len(found["seeds"])} other seeds, with 100 labels per'
        f' class, it reached the best accuracy of "scratch" {ratio["median"]:.0f}x faster'
        f" ({ratio['min']:.1f}x to {ratio['max']:.1f}x), and its test accuracy was"
        f" {100 * gained['median']:.1f} points higher"
        f" ([transfer_time.json](../benchmarks/results/transfer_time.json), `{found['command']}`).",
        "",
    ]


def _mean_std(values: dict[str, Any] | None) -> str:
    if values is None:
        return "-"
    return f"{float(values['mean']):.4g}" + (f" ± {values['std']:.2g}" if values["std"] is not None else "")


MEASURED: dict[str, Any] = {"transfer": _transfer_measured}


if __name__ == "__main__":
    for path, content in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    picture()
