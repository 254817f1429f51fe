"""What the recipes share: flags, the direction of verdicts, and the result file."""

from __future__ import annotations

import json

import pytest

import heptane as hp
import record
from record import BETTER, WORSE, Record, flags


def filled(more_is_better: bool, first: list[float], second: list[float]) -> Record:
    made = Record("made-up", "which is larger?", {"score": more_is_better})
    for a, b in zip(first, second, strict=True):
        made.add("first", {"score": a, "not asked for": 0.0})
        made.add("second", {"score": b})
    return made


@pytest.mark.parametrize(("more_is_better", "verdict"), [(True, BETTER), (False, WORSE)])
def test_a_verdict_goes_by_what_is_better(more_is_better, verdict):
    made = filled(more_is_better, [1.0, 2.0, 3.0], [2.0, 3.1, 3.9])
    made.compare("second", "first")
    assert made.verdicts[0].startswith("second against first: score +1 ")
    assert made.verdicts[0].endswith(verdict)


def test_one_seed_decides_nothing():
    made = filled(True, [1.0], [2.0])
    made.compare("second", "first")
    assert made.verdicts == ["second against first: score +1 (one seed: no interval)"]


def test_the_result_file_holds_arms_seeds_and_facts(tmp_path, capsys):
    filled(True, [1.0, 3.0], [2.0, 5.0]).finish(tmp_path / "new", data="numbers")
    found = json.loads((tmp_path / "new" / "recipe-made-up.json").read_text())
    assert found["seeds"] == [0, 1]
    assert found["arms"]["second"]["score"]["values"] == [2.0, 5.0]
    assert found["data"] == "numbers"
    assert found["question"] == "which is larger?"
    assert "2 ± 1.4" in capsys.readouterr().out


def test_what_an_arm_lacks_or_never_reaches_is_shown_as_such(tmp_path, capsys):
    made = Record("made-up", "how soon?", {"score": True, "seconds": False})
    for seconds in (3.0, float("inf")):
        made.add("slow", {"score": 1.0, "seconds": seconds})
        made.add("without a clock", {"score": 2.0})
    made.finish(tmp_path)
    text = (tmp_path / "recipe-made-up.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["arms"]["slow"]["seconds"] == {
        "median": "inf",
        "mean": "inf",
        "std": None,
        "min": 3.0,
        "max": "inf",
        "values": [3.0, "inf"],
    }
    assert "seconds" not in found["arms"]["without a clock"]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in printed if line.startswith(("slow  ", "without a clock  "))] == ["inf", "-"]


def test_flags_say_where_the_result_goes(tmp_path):
    assert flags("x", 3, []).out == record.FOLDER
    assert flags("x", 3, ["--quick"]).out is None
    assert flags("x", 3, ["--quick"]).seeds == 1
    assert flags("x", 3, ["--seeds", "2", "--out", str(tmp_path)]).out == tmp_path
    with pytest.raises(SystemExit):
        flags("x", 3, ["--seeds", "0"])


def test_wrong_input_is_one_line():
    def main() -> None:
        raise hp.InputError("nothing to be had")

    with pytest.raises(SystemExit, match=r"^error: nothing to be had$"):
        record.run(main)
