"""Flipped bits in a file: each answer is right or refused, or ``check`` knows of the damage."""

from __future__ import annotations

import random
from pathlib import Path

from tests.torture.damage import FINE, answers, flipped, forget, judged, prepare_file
from tests.torture.outcome import Outcome, Place

FLIPS = 12


def flipped_bits(place: Place, seed: int, outcome: Outcome) -> None:
    """One bit of a copy at a time; then every reading call, some writing ones, and ``check``."""
    sound_file, copy, dice = Path(place.file), place.folder / "copy.db", random.Random(seed)
    prepare_file(sound_file)
    copy.write_bytes(sound_file.read_bytes())
    sound = answers(str(copy))
    assert sound["check"] == "ok", sound
    for _ in range(FLIPS):
        forget(copy)
        found = judged(flipped(sound_file, copy, dice), str(copy), sound)
        outcome.faults += 1
        outcome.hung += found.kind == "hang"
        outcome.foreign += found.kind == "foreign"
        outcome.wrong += found.kind not in (*FINE, "hang", "foreign")
        if found.kind not in FINE:
            outcome.findings.append(f"{found.kind}: {found.damage}: {found.detail[:400]}")
