"""The pages on other libraries, GPUs, several workers, the papers' claims and the recipes, from result files."""

from __future__ import annotations

import ast
import json
import re
from statistics import fmean, stdev
from typing import Any

from measurements import PEER_NAMES, PEERS, RESULTS, ROOT, percent, read, table

RECIPES = ("images", "text", "translation", "speech", "tabular")


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
        (name, percent(row["test_accuracy"]), _median_range(row["train_seconds"]))
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
        lines += [f"## {heading.rstrip('.')}", "", markdown(text.strip()), "", *_recipe_measured(name)]
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


def markdown(text: str) -> str:
    return re.sub(r":(?:class|func|meth):`~?([^`]+)`", r"`\1`", text).replace("``", "`")
