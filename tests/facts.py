"""Runs and races with facts for their record, as the command makes them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import heptane as hp
from heptane.core.fit_options import Plan, with_extras
from heptane.race import RaceExtras
from heptane.race.race import RaceRequest
from heptane.session.request import Request
from heptane.training import train_as_asked


def fit_with_facts(model: Any, train: Any, valid: Any = None, *, about: dict[str, Any], **options: Any) -> hp.Result:
    """:func:`heptane.fit` with facts for the record."""
    options = with_extras(options)
    plan = {f.name: options.pop(f.name) for f in fields(Plan) if f.name in options}
    return train_as_asked(Request(model, train, Plan(**plan), valid, about=about, **options))


def race_with_facts(model: Any, train: Any, valid: Any, *, about: dict[str, Any], out: Any, **options: Any) -> Any:
    """:func:`heptane.race` with facts for the record."""
    extras = with_extras(options, RaceExtras).get("extras", RaceExtras())
    options = {name: value for name, value in with_extras(options, RaceExtras).items() if name != "extras"}
    plan = {f.name: options.pop(f.name) for f in fields(Plan) if f.name in options}
    return RaceRequest(model, train, valid, Plan(**plan), extras, about=about, **options).race(out)
