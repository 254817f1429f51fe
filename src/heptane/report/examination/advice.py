"""Suggest what to try next, from the run's own numbers, with a command for each suggestion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from heptane.report import is_finite, main_metric, section
from heptane.report.examination.commands import command_with, from_pretrained, is_command, with_more_time

MOST = 4
OUT_OF_TIME = "time ran out"  # prefix of the note on a run that its time limit ended
GAP = 0.08  # training minus validation accuracy, above which a model overfits
ENOUGH = 0.97  # accuracy above which little is left to gain
FEW = 30  # samples per class

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Advice:
    """One suggestion: what to do, the numbers behind it, and the command or arguments of ``hp.fit`` that do it."""

    title: str
    why: str
    command: str = ""


def advise(result: Result) -> list[Advice]:
    """At most :data:`MOST` suggestions, the most important first.

    Args:
        result: the content of ``result.json``.

    Example:
        >>> [advice.title for advice in advise({"history": [{"train_loss": 1.0}], "metrics": {}})]
        ['Set samples aside for validation']
    """
    rules: list[Callable[[Result], Advice | None]] = [
        *(_not_finite, _diverged, _cut_short, _no_validation, _one_class, _still_improving, _remembers, _past_its_best),
        *(_few_samples, _confused, _underfits, _few_to_judge_by, _no_better_than_the_mean, _good),
    ]
    found: list[Advice] = []
    for rule in rules:
        advice = rule(result)
        if advice is not None and (advice.command == "" or all(advice.command != other.command for other in found)):
            found.append(advice)
        if advice is not None and rule in (_not_finite, _diverged):
            break  # no other number of this run is meaningful
    return found[:MOST]


def _history(result: Result, key: str) -> list[float]:
    values = (record.get(key) for record in result.get("history") or [])
    return [float(value) for value in values if is_finite(value)]


def _train_accuracy(result: Result) -> float | None:
    """Of the delivered weights, as the accuracy on held-out samples is; of the last ones where the step is unknown."""
    history = result.get("history") or []
    step = section(result, "weights").get("step")
    there = [record for record in history if record.get("step") == step] or history
    return next(reversed(_history({"history": there}, "train_accuracy")), None)


def _accuracy(result: Result) -> float | None:
    key, value = main_metric(result)
    return float(value) if "accuracy" in key else None


def _setting(result: Result, name: str) -> Any:
    return section(result, "settings").get(name)


def _examined(result: Result) -> Mapping[str, Any]:
    return section(result, "examination")


def _has_images(result: Result) -> bool:
    return len(section(result, "data").get("input_shape") or []) == 3


def _on(result: Result, trick: str) -> bool:
    return any(row.get("name") == trick and row.get("on") for row in result.get("tricks") or [])


def _lower_rate(result: Result) -> str:
    rate = _setting(result, "learning_rate")
    if not is_finite(rate):
        return ""
    by_hand = f"a learning rate of {rate / 4:.3g} in your optimizer"
    return command_with(result, lr=rate / 4) if is_command(result) else by_hand


def _not_finite(result: Result) -> Advice | None:
    losses = [value for key, value in section(result, "metrics").items() if key.endswith("loss")]
    if all(map(is_finite, losses)):
        return None
    return Advice("Lower the learning rate", "The loss became NaN or infinite.", _lower_rate(result))


def _diverged(result: Result) -> Advice | None:
    losses = _history(result, "train_loss")
    if len(losses) < 3 or losses[-1] <= max(2 * min(losses), losses[0]) or losses[-1] < 0:
        return None
    why = f"Training diverged: the training loss fell to {min(losses):.3g}, then rose to {losses[-1]:.3g}."
    return Advice("Lower the learning rate", why, _lower_rate(result))


def _ran_out(result: Result) -> bool:
    """Whether a time limit ended the run early."""
    return any(str(note).startswith(OUT_OF_TIME) for note in result.get("notes") or [])


def _cut_short(result: Result) -> Advice | None:
    if not _ran_out(result):
        return None
    done, planned = (result.get("history") or [{}])[-1].get("epoch"), _setting(result, "epochs")
    why = f"Time ran out after {done:.3g} of {planned:.3g} epochs" if done and planned else "Time ran out early"
    cycle = ", before the learning-rate cycle was complete." if _on(result, "cyclical") else "."
    return Advice("Give it more time", why + cycle, with_more_time(result))


def _no_validation(result: Result) -> Advice | None:
    if not result.get("history") or any(key.startswith(("valid_", "test_")) for key in result.get("metrics") or {}):
        return None
    why = "This run has no validation or test data, so its accuracy on new samples is unknown."
    command = command_with(result, valid_fraction=0.2) if is_command(result) else ""
    return Advice("Set samples aside for validation", why, command)


def _one_class(result: Result) -> Advice | None:
    seen = _examined(result)
    rows = seen.get("per_class") or []
    if seen.get("kind") != "classes" or sum(row["count"] > 0 for row in rows) < 2:
        return None
    predicted = [row for row in rows if row["predicted"]]
    if len(predicted) == 1:
        why = f"It predicts {predicted[0]['class']} for all {seen['num_samples']:,} samples."
    elif seen["accuracy"] <= seen["majority_share"] + _error(seen["majority_share"], seen["num_samples"]):
        biggest = max(rows, key=lambda row: row["count"])["class"]
        share = f"{seen['majority_share']:.1%}"
        why = f"Its accuracy of {seen['accuracy']:.1%} is no better than always predicting {biggest} ({share})."
    else:
        return None
    rate = _setting(result, "learning_rate")
    command = command_with(result, epochs=_longer(result)) if not rate else _lower_rate(result)
    return Advice("Try a lower learning rate, then more epochs", why, command)


def _error(share: float, count: int) -> float:
    """The standard error of an accuracy ``share`` on ``count`` samples."""
    return math.sqrt(max(share * (1 - share), 1e-4) / max(count, 1))


def _longer(result: Result) -> float:
    epochs = _setting(result, "epochs")
    return round(2 * epochs, 2) if is_finite(epochs) else 20


def _num_valid(result: Result) -> int:
    return int(section(result, "data").get("num_valid") or _examined(result).get("num_samples") or 0)


def _still_improving(result: Result) -> Advice | None:
    """The last third of the evaluations improved by more than chance."""
    if _ran_out(result):
        return None
    for key, better in (("valid_accuracy", 1), ("valid_loss", -1)):
        values = [better * value for value in _history(result, key)]
        if len(values) < 3:
            continue
        third = max(1, len(values) // 3)
        late, before = max(values[-third:]), max(values[:-third])
        share = abs(late)
        chance = 1.5 * _error(share, _num_valid(result)) if better == 1 else 0.05 * abs(before)
        if late - before <= chance or max(values[-2:]) < late:
            return None
        words = (f"{before:.1%}", f"{late:.1%}") if better == 1 else (f"{-before:.3g}", f"{-late:.3g}")
        what = "accuracy" if better == 1 else "loss"
        why = f"Validation {what} was still improving in the last third of the run: from {words[0]} to {words[1]}."
        return Advice("Train longer", why, command_with(result, epochs=_longer(result)))
    return None


def _remembers(result: Result) -> Advice | None:
    train, held_out = _train_accuracy(result), _accuracy(result)
    if train is None or held_out is None or train - held_out < GAP + _error(held_out, _num_valid(result)):
        return None
    why = f"The model overfits: {train:.1%} accuracy on training samples, {held_out:.1%} on held-out ones."
    images, changed = _has_images(result), _setting(result, "augment") not in (None, "none")
    if images and is_command(result) and _on(result, "transfer") and not changed:
        why += " Augmentation (--augment warp) helps too, but takes longer: frozen features can then not be cached."
        return Advice("Collect more samples", why)
    command = from_pretrained(result)
    if images and command and not _on(result, "transfer"):
        return Advice("Start from pretrained weights", f"{why} A pretrained model needs fewer samples.", command)
    if images and is_command(result) and not changed:
        return Advice("Augment the images", why, command_with(result, augment="warp"))
    decay = _setting(result, "weight_decay")
    if is_command(result) and decay:
        why += " More samples help most; otherwise use more weight decay."
        return Advice("Regularise more", why, command_with(result, weight_decay=4 * decay))
    return Advice("Collect more samples, or use a smaller model", why)


def _past_its_best(result: Result) -> Advice | None:
    losses = _history(result, "valid_loss")
    if len(losses) < 6:
        return None
    best = losses.index(min(losses)) + 1
    if best > 0.6 * len(losses) or losses[-1] < 1.15 * min(losses):
        return None
    right = _history(result, "valid_accuracy")
    if right and right[-1] > max(right) - _error(max(right), _num_valid(result)):
        return None  # the model is less confident, but as accurate
    epochs = [record.get("epoch") for record in result.get("history") or [] if record.get("valid_loss") is not None]
    at = epochs[best - 1]
    if not is_finite(at):
        return None
    why = f"The validation loss was lowest at epoch {at:g} ({min(losses):.3g}), then rose to {losses[-1]:.3g}."
    return Advice("Train for fewer epochs", why, command_with(result, epochs=max(1, math.ceil(1.2 * at))))


def _few_samples(result: Result) -> Advice | None:
    seen = _examined(result)
    counts, rows = seen.get("train_counts") or [], seen.get("per_class") or []
    if seen.get("kind") != "classes" or len(counts) != len(rows) or not any(counts):
        return None
    overall = seen["accuracy"]
    weak = [
        (count, row)
        for count, row in zip(counts, rows, strict=True)
        if row["count"] and row["correct"] / row["count"] < min(overall, 0.9) and count < max(FEW, max(counts) / 4)
    ]
    if not weak:
        return None
    weak.sort(key=lambda pair: (pair[1]["correct"] / pair[1]["count"], pair[0]))
    named = [f"{row['class']} ({count:,} samples, {row['correct']} of {row['count']} right)" for count, row in weak[:3]]
    return Advice("Add samples of the weakest classes", f"Few training samples and low accuracy: {', '.join(named)}.")


def _confused(result: Result) -> Advice | None:
    seen = _examined(result)
    pairs, wrong = seen.get("confused") or [], seen.get("num_mistakes") or 0
    if not pairs or wrong < 5 or len(seen.get("per_class") or []) == 2:  # with two classes every mistake is between them
        return None
    both: dict[frozenset[str], int] = {}
    for pair in pairs:
        key = frozenset((pair["true"], pair["predicted"]))
        both[key] = both.get(key, 0) + pair["count"]
    names, count = max(both.items(), key=lambda item: item[1])
    if count < max(4, 0.3 * wrong):
        return None
    first, second = sorted(names)
    what = "Check their labels, and add samples that tell them apart"
    if _has_images(result):
        what = "The images of the mistakes may show wrong labels, or details lost at this image size"
    why = f"{count} of the {wrong} mistakes confuse these two. {what}."
    return Advice(f"Look at {first} and {second}", why)


def _underfits(result: Result) -> Advice | None:
    train, held_out = _train_accuracy(result), _accuracy(result)
    if train is None or held_out is None or train > 0.9 or train - held_out > GAP or _ran_out(result):
        return None
    why = f"The model underfits: only {train:.1%} accuracy on the training samples."
    if _on(result, "transfer") and is_command(result):
        more = " Training more layers of the pretrained model takes longer and may fit better."
        return Advice("Train more of the network", why + more, command_with(result, transfer__mode="gradual"))
    if section(result, "model").get("name") == "resnet" and is_command(result):
        return Advice("Use a larger model", why, command_with(result, model="resnet-wide"))
    return Advice("Train longer, or use a larger model", why, command_with(result, epochs=_longer(result)))


def _few_to_judge_by(result: Result) -> Advice | None:
    seen, held_out = _examined(result), _accuracy(result)
    count = seen.get("num_samples") or 0
    if held_out is None or seen.get("kind") != "classes" or not 0 < count < 100:
        return None
    points = 100 * 1.96 * _error(min(max(held_out, 1 / count), 1 - 1 / count), count)
    why = f"On {count} samples, accuracy is known to about ±{points:.0f} points: smaller differences between runs are noise."
    return Advice("Evaluate on more samples", why)


def _no_better_than_the_mean(result: Result) -> Advice | None:
    columns = _examined(result).get("columns") or []
    weak = [column for column in columns if column["r2"] is not None and column["r2"] < 0.1]
    if not weak:
        return None
    why = f"R² is {weak[0]['r2']:.2f}: hardly better than always predicting the mean."
    prepared = section(result, "data").get("preprocess") is not None  # targets are already scaled
    title = "Train longer, or add informative columns" if prepared else "Scale the targets and train longer"
    return Advice(title, why, command_with(result, epochs=_longer(result)))


def _good(result: Result) -> Advice | None:
    held_out = _accuracy(result)
    if held_out is None or held_out < ENOUGH:
        return None
    why = f"At {held_out:.1%}, little is left to gain on this data. Next, test on samples from where the model will be used."
    return Advice("Test it on data from another source", why)
