"""Queries answer what plain Python answers, on both databases, and nothing that is given to them is ever SQL."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

import memstore
from memstore import InvalidValue, col, count, maximum, mean, minimum, total
from memstore.queries.columns import EPISODE_COLUMNS, HISTORY_COLUMNS, NAMES, AllOf, Column, Condition, ExtraColumn
from tests.support.asking import HOSTILE, KEYS, TEXTS, Known, conditions, fill, holds, value_of
from tests.support.helpers import OpenMemory

QUICK = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
PLAIN = [column for column in EPISODE_COLUMNS if column.name != "extra"]
TYPED: list[Column] = [*PLAIN, col.extra["p"].number, col.extra["p"].text, col.extra["p"].flag]


@pytest.fixture
def past(open_memory: OpenMemory) -> tuple[memstore.EpisodicMemory, list[Known]]:
    open_memory(buffer="another").extend({"x": np.zeros((50, 2))}, loss=3.0, level=1, tags=("a",), domain="a")
    memory = open_memory(buffer="asked", capacity=1000, consumer="'; DROP TABLE buffer; --")
    return memory, fill(memory)


def sort_key(value: Any) -> tuple[bool, Any]:
    return value is None, value.encode() if isinstance(value, str) else value


def ids(rows: list[Known]) -> list[int]:
    return [row["id"] for row in rows]


def test_conditions_agree_with_brute_force(past: tuple[memstore.EpisodicMemory, list[Known]]) -> None:
    memory, rows = past

    @QUICK
    @given(conditions(PLAIN))
    def check(condition: Condition) -> None:
        passing = ids([row for row in rows if holds(condition, row)])
        query = memory.query().filter(condition)
        assert query.ids().tolist() == passing, condition
        assert query.count() == len(passing)
        assert memory.query().filter(~condition).count() == len(rows) - len(passing)

    check()


def test_order_and_limit_agree_with_brute_force(past: tuple[memstore.EpisodicMemory, list[Known]]) -> None:
    memory, rows = past
    for column in TYPED:
        for down in (False, True):
            known = [row for row in rows if value_of(column, row) is not None]
            missing = [row for row in rows if value_of(column, row) is None]
            ordered = sorted(known, key=lambda row: sort_key(value_of(column, row)), reverse=down)
            if down:  # ties by id all the same
                ordered = sorted(known, key=lambda row: row["id"])
                ordered.sort(key=lambda row: sort_key(value_of(column, row)), reverse=True)
            wanted = ids(ordered + missing)
            query = memory.query().order_by(column.descending if down else column)
            assert query.ids().tolist() == wanted, column
            for most in (0, 1, 7, 1000):
                assert query.limit(most).ids().tolist() == wanted[:most], (column, most)


def test_filter_and_order_together_agree_with_brute_force(past: tuple[memstore.EpisodicMemory, list[Known]]) -> None:
    """What a filter says of a column (that it is known, say) may be used for the order, and must not change it."""
    memory, rows = past

    @settings(QUICK, max_examples=100)
    @given(conditions(TYPED), st.sampled_from(TYPED), st.booleans(), st.none() | st.integers(0, 40))
    def check(condition: Condition, column: Column, down: bool, most: int | None) -> None:
        passing = [row for row in rows if holds(condition, row)]
        known = [row for row in passing if value_of(column, row) is not None]
        known.sort(key=lambda row: sort_key(value_of(column, row)), reverse=False)
        if down:
            known = sorted(known, key=lambda row: row["id"])
            known.sort(key=lambda row: sort_key(value_of(column, row)), reverse=True)
        wanted = ids(known + [row for row in passing if value_of(column, row) is None])
        query = memory.query().filter(condition).order_by(column.descending if down else column)
        assert (query if most is None else query.limit(most)).ids().tolist() == wanted[:most], (condition, column)

    check()
    place = col.extra["p"]
    for typed in (place.number, place.text, place.flag):
        for tested in (place, place.number, place.text, place.flag):
            passing = [row for row in rows if value_of(tested, row) is not None]
            wanted = sorted((value_of(typed, row) for row in passing), key=sort_key)
            found = memory.query().filter(tested.is_known()).order_by(typed).select(value=typed).all()
            assert [row.value for row in found] == wanted, (typed, tested)


def test_names_to_sort_by_are_the_answers_own(past: tuple[memstore.EpisodicMemory, list[Known]]) -> None:
    memory, rows = past
    losses = sorted((row["loss"] for row in rows if row["loss"] is not None), reverse=True)
    for most in (3, len(losses)):
        assert [row.loss for row in memory.query().order_by("-loss").limit(most)] == losses[:most]
        shifted = memory.query().select(timestamp=col.loss).order_by("-timestamp").limit(most)
        assert [row.timestamp for row in shifted] == losses[:most], "not the column of that name"
        renamed = memory.query().select(x=col.loss, y=col.id).order_by("x", "-y").limit(most)
        wanted = sorted((row["loss"], -row["id"]) for row in rows if row["loss"] is not None)[:most]
        assert [(row.x, -row.y) for row in renamed] == wanted
    steps = [event.step for event in memory.history() if event.step is not None]
    assert [event.step for event in memory.query("history").order_by("-step").limit(5)] == sorted(steps)[:-6:-1]
    names = memory.query("history").select(step=col.event).order_by("-step").limit(2).all()
    assert [row.step for row in names] == [event.event for event in memory.history()][:-3:-1]


def test_groups_of_one_place_by_type_sort_by_the_type_meant(open_memory: OpenMemory) -> None:
    memory = open_memory()
    memory.extend({"x": np.zeros(4)}, extra=[{"p": 2}, {"p": "b"}, {"p": 10}, {"p": "a"}])
    place = col.extra["p"]
    query = memory.query().group_by(a=place.text, b=place.number).aggregate(n=count())
    assert [(row.a, row.b) for row in query.order_by(place.number.descending)] == [
        (None, 10.0),
        (None, 2.0),
        ("a", None),
        ("b", None),
    ]
    assert [row.a for row in query.order_by(place.text.descending)] == ["b", "a", None, None]


def test_numbers_at_the_ends_of_a_float_have_a_mean(open_memory: OpenMemory) -> None:
    """PostgreSQL's quotient raises where it is too small for a float; SQLite's is 0."""
    memory = open_memory()
    for domain, losses in (("tiny", [5e-324, 0.0, 0.0, 0.0]), ("small", [4e-300, 2e-300]), ("none", [0.0])):
        memory.extend({"x": np.zeros(len(losses))}, loss=losses, domain=domain)
    found = memory.query().group_by(col.domain).aggregate(loss=mean(col.loss), sum=total(col.loss)).all()
    assert [(row.domain, row.loss, row.sum) for row in found] == [
        ("none", 0.0, 0.0),
        ("small", pytest.approx(3e-300, rel=1e-15), pytest.approx(6e-300, rel=1e-15)),
        ("tiny", 0.0, 5e-324),
    ]


@pytest.mark.parametrize("column", TYPED, ids=str)
def test_groups_agree_with_brute_force(past: tuple[memstore.EpisodicMemory, list[Known]], column: Column) -> None:
    memory, rows = past
    groups: dict[Any, list[Known]] = {}
    for row in rows:
        groups.setdefault(value_of(column, row), []).append(row)
    found = (
        memory.query()
        .group_by(value=column)
        .aggregate(
            n=count(),
            known=count(col.loss),
            loss=mean(col.loss),
            low=minimum(col.level),
            high=maximum(col.rise),
            sum=total(col.replay_count),
            all=total(col.timestamp),
        )
        .all()
    )
    assert [row.value for row in found] == sorted(groups, key=sort_key)
    for row in found:
        own = groups[row.value]
        losses = [r["loss"] for r in own if r["loss"] is not None]
        levels = [r["level"] for r in own if r["level"] is not None]
        rises = [r["rise"] for r in own if r["rise"] is not None]
        assert (row.n, row.known, row.sum) == (len(own), len(losses), sum(r["replay_count"] for r in own))
        assert row.low == min(levels, default=None) and row.high == max(rises, default=None)
        assert row.all == pytest.approx(sum(r["timestamp"] for r in own), rel=1e-12)
        # The law's tolerance: sums of n floats differ in their order by at most n half units in the last place.
        wanted = math.fsum(min(loss, 1e290) for loss in losses) / len(losses) if losses else None
        assert row.loss == (None if wanted is None else pytest.approx(wanted, rel=1e-13 * (len(losses) + 1)))


def test_groups_sort_by_what_is_known_of_them(past: tuple[memstore.EpisodicMemory, list[Known]]) -> None:
    memory, rows = past
    query = memory.query().group_by(col.domain).aggregate(n=count())
    sizes = {domain: sum(row["domain"] == domain for row in rows) for domain in {row["domain"] for row in rows}}
    wanted = sorted(sizes, key=lambda domain: (-sizes[domain], domain.encode()))
    assert [row.domain for row in query.order_by("-n").limit(5)] == wanted[:5]
    assert [row.domain for row in query.order_by(col.domain.descending)] == sorted(sizes, key=str.encode, reverse=True)


def test_rows_are_whole(past: tuple[memstore.EpisodicMemory, list[Known]]) -> None:
    memory, rows = past
    names = [*(field.name for field in dataclasses.fields(memstore.Episode) if field.name != "payload"), "rise"]
    found = memory.query().all()
    assert [{name: getattr(row, name) for name in names} for row in found] == [
        {name: row[name] for name in names} for row in rows
    ]
    assert all(row.payload is None for row in found)
    assert [replace(row, payload=None) for row in memory.get_many([row.id for row in found])] == found
    assert memory.query().limit(9).order_by(col.domain).all() == sorted(found, key=lambda row: row.domain.encode())[:9]
    chosen = memory.query().select(col.id, place=col.extra["p"], more=col.extra["p"].number).all()
    assert [(row.id, row.place) for row in chosen] == [(row["id"], value_of(col.extra["p"], row)) for row in rows]


def test_ready_made_answers_agree_with_brute_force(past: tuple[memstore.EpisodicMemory, list[Known]]) -> None:
    memory, rows = past
    for n in (1, 10, 1000):
        for answer, name, known in (
            (memory.hardest, "loss", [row for row in rows if row["loss"] is not None]),
            (memory.most_replayed, "replay_count", [row for row in rows if row["replay_count"]]),
            (memory.forgotten, "rise", [row for row in rows if row["rise"]]),
        ):
            wanted = sorted(known, key=lambda row, name=name: (-row[name], row["id"]))  # type: ignore[misc]
            assert [episode.id for episode in answer(n)] == ids(wanted)[:n], name
        never = [row for row in rows if not row["replay_count"]]
        assert [episode.id for episode in memory.never_replayed(n)] == ids(never)[:n]


def test_history_queries_agree_with_brute_force(past: tuple[memstore.EpisodicMemory, list[Known]]) -> None:
    memory, rows = past
    live = {row["id"]: row for row in rows}
    events = []
    for one in memory.history():
        facts = {name: getattr(one, name) for name in memstore.ReplayEvent.__slots__}
        gone = dict.fromkeys([*NAMES, "tags"])
        events.append({**gone, **live.get(one.id, {}), **facts})
    assert any(event["loss"] is None for event in events) and len(events) == 120 + 15

    @settings(QUICK, max_examples=100)
    @given(conditions([*PLAIN, *HISTORY_COLUMNS]))
    def check(condition: Condition) -> None:
        passing = [one["event"] for one in events if holds(condition, one)]
        query = memory.query("history").filter(condition)
        assert [one.event for one in query] == passing, condition
        assert query.count() == len(passing)

    check()
    for column in PLAIN:
        ordered = [one.event for one in memory.query("history").order_by(column)]
        known = [(sort_key(one[column.name]), one["event"]) for one in events if one[column.name] is not None]
        wanted = [number for _, number in sorted(known)]
        wanted += [one["event"] for one in events if one[column.name] is None]
        assert ordered == wanted, column
        kept = memory.query("history").select(value=column).arrays()["value"]
        assert len(kept) == len(events)


def test_what_is_asked_wrongly_is_refused_with_advice(memory: memstore.EpisodicMemory) -> None:
    memory.add({"x": 1.0})
    utc = datetime.UTC
    wrong: list[tuple[Any, str]] = [
        (lambda: col.loss == "x", "loss needs a number"),
        (lambda: col.loss > math.nan, "finite"),
        (lambda: col.loss < math.inf, "finite"),
        (lambda: col.level == True, "number"),  # noqa: E712
        (lambda: col.level > 2**63, "between"),
        (lambda: col.domain == 3, "text"),
        (lambda: col.domain == "a\0", "NUL"),
        (lambda: col.domain == "\ud800", "surrogate"),
        (lambda: col.timestamp > datetime.datetime(2026, 1, 1), "time zone"),
        (lambda: col.domain.in_("math"), "list of values"),
        (lambda: 1 < col.loss < 2, "truth value"),
        (lambda: (col.loss > 1) and (col.loss < 2), "truth value"),
        (lambda: not col.loss, "truth value"),
        (lambda: (col.loss > 1) & True, "conditions"),  # type: ignore[operator]
        (lambda: col.extra["a"][True], "str"),
        (lambda: col.extra["a"][-1], "between"),
        (lambda: col.extra["a"].flag > False, "order"),
        (lambda: col["nope"], "no column"),
        (lambda: memory.query("memories"), "episodes"),  # type: ignore[arg-type]
        (lambda: memory.query().filter(col.step > 1).all(), "history"),
        (lambda: memory.query().filter(True).all(), "condition"),  # type: ignore[arg-type]
        (lambda: memory.query().order_by(col.extra["a"]).all(), "type"),
        (lambda: memory.query().order_by("nope").all(), "no column"),
        (lambda: memory.query().order_by("tags").all(), "tags"),
        (lambda: memory.query().group_by(col.extra["a"]).all(), "name"),
        (lambda: memory.query().group_by(a=col.extra["a"]).all(), "type"),
        (lambda: memory.query().group_by(col.domain).aggregate(n=3).all(), "count"),  # type: ignore[arg-type]
        (lambda: memory.query().group_by(col.domain).aggregate(n=count()).order_by(col.loss).all(), "sorted"),
        (lambda: mean(col.domain), "text"),
        (lambda: total(col.id), "means nothing"),
        (lambda: mean("loss"), "column"),  # type: ignore[arg-type]
        (lambda: memory.query().limit(-1), "limit"),
        (lambda: memory.query().select(), "at least one"),
        (lambda: memory.query().select("loss"), "column"),  # type: ignore[arg-type]
        (lambda: memory.query().select(col.loss, col.loss).all(), "same name"),
        (lambda: memory.query().group_by(col.domain, domain=col.level).all(), "same name"),
        (lambda: memory.query().select(**{"a b": col.loss}).all(), "cannot name"),
        (lambda: memory.query().select(**{"class": col.loss}).all(), "cannot name"),
        (lambda: memory.history(steps=(3, 1)), "first <= last"),
        (lambda: memory.history(limit=0), "limit must be between 1 and"),
        (lambda: memory.hardest(0), "^n must be between 1 and"),
        (lambda: memory.loss_trend(by="level"), "domain"),  # type: ignore[arg-type]
        (lambda: memory.sample(1, where=True), "condition"),  # type: ignore[arg-type]
        (lambda: memory.sample(1, where=col.step > 1), "history"),
    ]
    for ask, advice in wrong:
        with pytest.raises((InvalidValue, memstore.ConfigError), match=advice):
            ask()
    deep: Any = col.loss > 1
    with pytest.raises(InvalidValue, match="deep"):
        for _ in range(200):
            deep = ~(deep & (col.loss > 1)) | (col.loss < 3)
    right = [
        col.loss > np.float32(1),
        col.level == np.int64(3),
        col.level > np.array(2),
        col.extra["a"] == np.bool_(True),
        col.timestamp > datetime.datetime(2026, 1, 1, tzinfo=utc),
        col.domain.in_([]),
    ]
    assert memory.query().filter(*right).all() == []


@pytest.fixture
def told(past: tuple[memstore.EpisodicMemory, list[Known]]) -> Iterator[list[str]]:
    """The text of every statement that SQLAlchemy sends."""
    statements: list[str] = []
    engine = past[0]._session.database.engine

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


def test_texts_are_data_and_nothing_else(past: tuple[memstore.EpisodicMemory, list[Known]], told: list[str]) -> None:
    memory, rows = past
    secret = "s3cret"

    @settings(QUICK, max_examples=60)
    @given(st.one_of(TEXTS, st.sampled_from(HOSTILE).map(lambda text: text + secret)))
    def check(text: str) -> None:
        for condition in (
            col.domain == text,
            col.domain > text,
            col.key.in_([text, "x"]),
            col.tags.has(text),
            col.extra[text] == text,
            col.extra[text][text].is_known(),
            col.extra["p"].text >= text,
        ):
            assert memory.query().filter(condition).ids().tolist() == ids([r for r in rows if holds(condition, r)])
        assert memory.history(consumer=text or "x", limit=3) == []
        assert memory.history(domain=text or "x") == [e for e in memory.history() if e.domain == text]
        for name in (text, text + secret):
            with pytest.raises(InvalidValue):
                memory.query().order_by(name + "'").all()
            try:
                found = memory.query().select(**{name: col.id}).limit(1).all()
                assert getattr(found[0], name) == rows[0]["id"]
            except InvalidValue:
                assert not name.isidentifier() or name in ("NULL",)

    check()
    assert told and not any(secret in statement or "DROP" in statement.upper() for statement in told)
    assert memory.check().ok and len(memory) == len(rows)
    for key in KEYS:
        assert memory.query().filter(col.extra[key][key][1] == key).count() == sum(
            holds(col.extra[key][key][1] == key, row) for row in rows
        )


def test_strategies_take_names_as_data(past: tuple[memstore.EpisodicMemory, list[Known]]) -> None:
    memory, _ = past
    domain = HOSTILE[0]
    batch = memory.sample(5, strategy=memstore.DomainBalanced({domain: 1.0}), where=col.domain.in_(HOSTILE))
    assert set(batch.domain.tolist()) == {domain}


def test_a_condition_is_a_value() -> None:
    one = (col.loss > 1) & ~(col.domain == "a") | col.extra["p"][0].in_([1, 2])
    same = (col.loss > 1) & (col.domain != "a") | col.extra["p"][0].in_([1, 2])
    assert one == same and hash(one) == hash(same) and one != (col.loss > 2)
    assert AllOf(()) == AllOf(()) and isinstance(col.extra["p"], ExtraColumn)
    assert str(one) == "(loss > 1 and (not domain = 'a')) or extra[\"p\"][0] in (1, 2)"
