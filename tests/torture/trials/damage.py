"""Flipped bits and changed rows in a file: each answer is right or refused, or ``check`` knows of the damage."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from tests.torture.damage import FINE, answers, edited, flipped, forget, judged, prepare_file
from tests.torture.hostile import EDITS, HOSTILE
from tests.torture.outcome import Outcome, Place

DAMAGES = 12


def flipped_bits(place: Place, seed: int, outcome: Outcome) -> None:
    """One bit of a copy at a time; then every reading call, some writing ones, and ``check``."""
    dice = random.Random(seed)

    def damage(sound_file: Path, copy: Path) -> str:
        return flipped(sound_file, copy, dice)

    _damaged(place, damage, outcome)


def hostile_files(place: Place, seed: int, outcome: Outcome) -> None:
    """Rows changed by hand, two at a time, and definitions that would run something."""
    dice = random.Random(seed)

    def damage(sound_file: Path, copy: Path) -> str:
        if dice.random() < 0.3:
            names = [dice.choice(sorted(HOSTILE))]
            statements = HOSTILE[names[0]]
        else:
            names = dice.sample(sorted(EDITS), 2)
            statements = [EDITS[name] for name in names]
        edited(sound_file, copy, statements)
        return " and ".join(names)

    _damaged(place, damage, outcome)


def _damaged(place: Place, damage: Callable[[Path, Path], str], outcome: Outcome) -> None:
    sound_file, copy = Path(place.file), place.folder / "copy.db"
    prepare_file(sound_file)
    copy.write_bytes(sound_file.read_bytes())
    sound = answers(str(copy))
    assert sound["check"] == "ok", sound
    for _ in range(DAMAGES):
        forget(copy)
        found = judged(damage(sound_file, copy), str(copy), sound)
        outcome.faults += 1
        outcome.hung += found.kind == "hang"
        outcome.foreign += found.kind == "foreign"
        outcome.wrong += found.kind not in (*FINE, "hang", "foreign")
        if found.kind not in FINE:
            outcome.findings.append(f"{found.kind}: {found.damage}: {found.detail[:400]}")
