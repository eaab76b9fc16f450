"""Queries as text: what they mean, where they cannot be read, and that nothing else ever happens."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memstore.errors import InvalidValue
from memstore.queries.columns import EPISODE_COLUMNS, HISTORY_COLUMNS, MAX_DEPTH, Column, Condition, col
from memstore.queries.parser import MAX_LENGTH, WINDOW, parse
from tests.support.asking import HOSTILE, conditions

QUICK = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
COLUMNS: list[Column] = [column for column in (*EPISODE_COLUMNS, *HISTORY_COLUMNS) if column.name != "extra"]
DAY = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC).timestamp()

GOOD: list[tuple[str, Condition]] = [
    ("loss > 2 and domain = 'math'", (col.loss > 2) & (col.domain == "math")),
    ("loss>2 AND domain=='math'", (col.loss > 2) & (col.domain == "math")),
    ("loss > 1 or loss < 0.5 and level = 3", (col.loss > 1) | ((col.loss < 0.5) & (col.level == 3))),
    ("(loss > 1 or loss < 0.5) and level = 3", ((col.loss > 1) | (col.loss < 0.5)) & (col.level == 3)),
    ("not level = 3", col.level != 3),
    ("level <> 3", col.level != 3),
    ("level != 1_000", col.level != 1000),
    ("not (level = 3 or tags has 'hard')", ~((col.level == 3) | col.tags.has("hard"))),
    ("domain in ('a', \"b\", 'it''s')", col.domain.in_(["a", "b", "it's"])),
    ("domain not in ('a')", ~col.domain.in_(["a"])),
    ("domain in ()", col.domain.in_([])),
    ("loss between -1 and +2.5e-3", (col.loss >= -1) & (col.loss <= 0.0025)),
    ("loss between 1 and 2 and level = 3", (col.loss >= 1) & (col.loss <= 2) & (col.level == 3)),
    ("key is missing or key is not null", col.key.is_missing() | col.key.is_known()),
    ("key is not known", col.key.is_missing()),
    ("extra.policy.version >= 12", col.extra["policy"]["version"] >= 12),
    ("extra[\"a\"]['it''s'][0] = true", col.extra["a"]["it's"][0] == True),  # noqa: E712
    ("extra.x is number", col.extra["x"].number.is_known()),
    ("extra.x is not text", col.extra["x"].text.is_missing()),
    ("extra.x in (1, 2)", col.extra["x"].in_([1, 2])),
    ("timestamp >= '2026-11-23'", col.timestamp >= DAY),
    ("timestamp < '2026-11-23T01:00:00+01:00'", col.timestamp < DAY),
    ('domain = "\'; DROP TABLE episode; --"', col.domain == "'; DROP TABLE episode; --"),
    ("domain = 'a\nb' and level = 1", (col.domain == "a\nb") & (col.level == 1)),
]
BAD: list[tuple[str, int, str]] = [
    ("loss >> 2", 6, "expected a value"),
    ("lss > 2", 0, "did you mean loss"),
    ("nonsense = 1", 0, "the columns are"),
    ("loss > 'x'", 7, "number"),
    ("domain = 3", 9, "text"),
    ("loss > 2 and", 12, "found the end"),
    ("loss > 2 level = 3", 9, "expected 'and', 'or'"),
    ("(loss > 2", 9, "closing bracket"),
    ("loss > 2)", 8, "expected 'and', 'or'"),
    ("loss = 'abc", 7, "not closed"),
    ("loss ; drop", 5, "cannot be read"),
    ("loss", 4, "comparison"),
    ("loss not 3", 9, "comparison"),
    ("domain in 'a'", 10, "opening bracket"),
    ("domain in ('a' 'b')", 15, "comma"),
    ("level in (1, 'b')", 13, "number"),
    ("tags = 'x'", 5, "has"),
    ("key is 3", 7, "'missing' or 'known'"),
    ("key is number", 7, "'missing' or 'known'"),
    ("extra[loss] = 1", 6, "quoted key"),
    ("extra.a[1.5] = 1", 8, "str"),
    ("timestamp > 'yesterday'", 12, "is a time"),
    ("loss > 1e999", 7, "finite"),
    ("loss = true", 7, "number"),
    ("step = 3", 0, "--history"),
    ("loss between 1 or 2", 15, "expected 'and'"),
]


@pytest.mark.parametrize(("text", "meant"), GOOD, ids=[text for text, _ in GOOD])
def test_a_phrase_means_its_condition(text: str, meant: Condition) -> None:
    assert parse(text) == meant
    assert parse(f"  {text}\n") == meant


@pytest.mark.parametrize(("text", "place", "expected"), BAD, ids=[text for text, _, _ in BAD])
def test_an_error_points_at_its_place(text: str, place: int, expected: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse(text)
    message, shown, mark = str(caught.value).split("\n")
    assert expected in message
    assert shown == f"  {text}" and mark == f"  {' ' * place}^"


def test_a_long_text_is_shown_around_the_place() -> None:
    text = " or ".join(["loss > 1"] * 100) + " or\tlss > 1" + " or loss > 1" * 100
    with pytest.raises(InvalidValue) as caught:
        parse(text)
    _, shown, mark = str(caught.value).split("\n")
    assert len(shown) == WINDOW + 2 and shown[mark.index("^") :].startswith("lss") and "\t" not in shown


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_text_is_answered_with_an_example(text: str) -> None:
    with pytest.raises(InvalidValue, match="write for example"):
        parse(text)


@pytest.mark.parametrize(
    "text", ["(" * 5000, "not " * 2000 + "loss = 1", "not(" * 1000, "extra" + "[0]" * 3000 + " = 1"]
)
def test_depth_is_bounded(text: str) -> None:
    with pytest.raises(InvalidValue, match=f"more than {MAX_DEPTH} deep|at most 16"):
        parse(text)


def test_length_is_bounded() -> None:
    with pytest.raises(InvalidValue, match="at most"):
        parse("loss > 1 or " * MAX_LENGTH)
    with pytest.raises(InvalidValue, match="text such as"):
        parse(3)  # type: ignore[arg-type]


def test_the_history_has_columns_of_its_own() -> None:
    assert parse("step = 3 and loss > 1", over="history") == (col.step == 3) & (col.loss > 1)


@QUICK
@given(conditions(COLUMNS))
def test_every_condition_reads_back_from_its_text(condition: Condition) -> None:
    assert parse(str(condition), over="history") == condition


WORDS = [
    "loss",
    "domain",
    "extra",
    "tags",
    "and",
    "or",
    "not",
    "in",
    "is",
    "has",
    "between",
    "missing",
    "1",
    "'a'",
    "=",
    "(",
]


@settings(QUICK, max_examples=400)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*WORDS, ")", ",", "[", "]", ".", "<", *HOSTILE])).map(" ".join)))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        condition = parse(text, over="history")
    except InvalidValue:
        return
    assert parse(str(condition), over="history") == condition
