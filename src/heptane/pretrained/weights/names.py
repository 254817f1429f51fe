"""Match the names of two sets of weights: exactly, or after replacing one prefix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product

WRAPPER = re.compile(r"(?:module|_orig_mod|backbone|model)\.")
DEPTH = 3  # of a prefix, in dotted parts


def pair_names(
    source: Iterable[str], target: Iterable[str], fitting: Callable[[str, str], int]
) -> tuple[dict[str, str], tuple[str, str]]:
    """Pair the model's names with the file's, using the pair of prefixes under which most elements fit.

    A prefix is up to three leading parts that at least half of the names on one side share, or that wrappers add
    (``module.``, ``_orig_mod.``, ``backbone.``, ``model.``) to any number of names. One of the file's is replaced by one of
    the model's; each may be empty. If several pairs fit equally well, the shortest is used.

    Args:
        source: names in the file.
        target: names in the model.
        fitting: number of elements that fit if the first name, the model's, is loaded from the second, the file's.

    Returns:
        A dict from the model's names to the file's, and the two prefixes, the file's first.

    Example:
        >>> pair_names(["bert.a", "bert.b", "c"], ["encoder.a", "encoder.b"], lambda *names: 1)
        ({'encoder.a': 'bert.a', 'encoder.b': 'bert.b'}, ('bert.', 'encoder.'))
    """
    held_names, wanted_names = dict.fromkeys(source), list(target)

    def paired(held: str, wanted: str) -> dict[str, str]:
        renamed = {name: held + name.removeprefix(wanted) for name in wanted_names if name.startswith(wanted)}
        pairs = {name: other for name, other in renamed.items() if other in held_names}
        used = set(pairs.values())
        return pairs | {n: n for n in wanted_names if n not in pairs and n in held_names and n not in used}

    choices = product(prefixes(held_names), prefixes(wanted_names))
    by_length = sorted(choices, key=lambda two: len(two[0]) + len(two[1]))
    best = max(by_length, key=lambda two: sum(fitting(*names) for names in paired(*two).items()))
    return paired(*best), best


def prefixes(names: Iterable[str]) -> list[str]:
    """``""`` and the leading parts, up to three deep, that at least half of the names share or that wrappers add.

    Example:
        >>> prefixes(["vit.layer.0.weight", "vit.layer.1.weight", "module.head"])
        ['', 'module.', 'vit.', 'vit.layer.']
    """
    names = list(names)
    shared: Counter[str] = Counter()
    wrapped = {""}
    for name in names:
        parts = name.split(".", DEPTH)[:-1]
        shared.update("".join(f"{part}." for part in parts[: depth + 1]) for depth in range(len(parts)))
        end = 0
        while (part := WRAPPER.match(name, end)) and name.count(".", 0, end) < DEPTH:
            end = part.end()
            wrapped.add(name[:end])
    return sorted(wrapped | {prefix for prefix, count in shared.items() if 2 * count >= len(names)})


def printable(name: str, limit: int = 120) -> str:
    """A name for a message: on one line, and not too long."""
    plain = name if name.isprintable() else ascii(name)
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


def abbreviate(names: Iterable[str], limit: int = 4) -> str:
    """The first names, and the number of others.

    Example:
        >>> abbreviate("abcdef")
        'a, b, c, d and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name) for name in names[:limit]) + more
