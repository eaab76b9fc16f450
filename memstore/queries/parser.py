"""Reads the text of a condition, such as ``loss > 2 and domain = 'math'``.

This is the grammar. Keywords may be in upper or lower case::

    condition  = all { "or" all }
    all        = single { "and" single }
    single     = "not" single | "(" condition ")" | test
    test       = column ( operator value | [ "not" ] "in" "(" [ value { "," value } ] ")" | "between" value "and" value
               | "is" [ "not" ] ( "missing" | "known" | "null" | "number" | "text" | "flag" ) | "has" text )
    column     = name { "[" text or integer "]" | "." name }
    value      = number | 'text' | "text" | true | false
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

from memstore.errors import InvalidValue
from memstore.queries.columns import (
    MAX_DEPTH,
    NAMES,
    OPERATORS,
    Column,
    Condition,
    ExtraColumn,
    Over,
    TagsColumn,
    check_columns,
    col,
    no_column,
    tested_columns,
)
from memstore.values.shown import shown

T = TypeVar("T")

MAX_LENGTH = 10_000
"""Characters that a text may have."""

WINDOW = 60
"""Characters of a long text that a message shows, around the place of the error."""

EXAMPLE = "loss > 2 and domain = 'math'"
"""Messages show this example."""

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?(?![\w]))
      | (?P<text>'(?:[^']|'')*'|"(?:[^"\\]|""|\\.)*")
      | (?P<word>[^\W\d]\w*)
      | (?P<sign><=|>=|!=|<>|==|[=<>(),.\[\]])
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_COMPARE: dict[str, Callable[..., Condition]] = OPERATORS | {"=": operator.eq, "!=": operator.ne, "<>": operator.ne}
"""The signs of comparisons, each with the function that makes the condition."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.lower() in words


def parse(text: str, *, over: Over = "episodes") -> Condition:
    """Read the text of a condition. This is the inverse of ``str(condition)``.

    Parameters
    ----------
    text : str
        At most 10,000 characters.
    over : "episodes" or "history"
        The rows that the condition is for. Live episodes do not have the columns of the history.

    Raises
    ------
    InvalidValue
        If the text cannot be read. The message shows the text, marks the place, and says what was expected there.
    """
    if not isinstance(text, str):
        raise InvalidValue(f"a query is a text such as {EXAMPLE!r}, got {shown(text)}")
    if len(text) > MAX_LENGTH:
        raise InvalidValue(f"a query has at most {MAX_LENGTH:,} characters, this one has {len(text):,}; shorten it")
    if not text.strip():
        raise InvalidValue(f"the query is empty; write for example: {EXAMPLE}")
    return _Parser(text, over).parse()


def as_condition(given: Condition | str, *, over: Over = "episodes") -> Condition:
    """Return a condition, which may be given by its text.

    Raises
    ------
    InvalidValue
        If it is neither a condition nor such a text, or if live episodes are asked for a column of the history.
    """
    if isinstance(given, str):
        return parse(given, over=over)
    if not isinstance(given, Condition):
        raise InvalidValue(
            f"expected a condition such as col.loss > 1, or a text such as {EXAMPLE!r}, got {shown(given)}"
        )
    check_columns(tested_columns(given), over)
    return given


class _Parser:
    """Reads one text by recursive descent: a method for each rule of the grammar, with one token of look-ahead."""

    def __init__(self, text: str, over: Over) -> None:
        self._text, self._over = text, over
        self._next = 0
        self._token = self._read_token()
        self._depth = 0

    def parse(self) -> Condition:
        condition = self._condition()
        if self._token.kind != "end":
            self._fail(self._token.at, f"expected 'and', 'or' or the end, found {self._token_text()}")
        return condition

    def _condition(self) -> Condition:
        condition = self._all()
        while self._accept("or"):
            at, more = self._token.at, self._all()
            condition = self._build(at, operator.or_, condition, more)
        return condition

    def _all(self) -> Condition:
        condition = self._single()
        while self._accept("and"):
            at, more = self._token.at, self._single()
            condition = self._build(at, operator.and_, condition, more)
        return condition

    def _single(self) -> Condition:
        at = self._token.at
        if not (self._token.is_word("not") or self._token.text == "("):
            return self._test()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(at, f"conditions are nested more than {MAX_DEPTH} deep")
        condition: Condition
        if self._accept("not"):
            condition = ~self._single()
        else:
            self._advance()
            condition = self._condition()
            self._expect(")", "a closing bracket")
        self._depth -= 1
        return condition

    def _test(self) -> Condition:
        column = self._column()
        if isinstance(column, TagsColumn):
            if not self._accept("has"):
                self._fail(self._token.at, f"expected \"has 'tag'\" after tags, found {self._token_text()}")
            at, tag = self._token.at, self._value()
            return self._build(at, column.has, tag)
        if self._accept("is"):
            return self._is(column)
        if self._accept("between"):
            low = self._compare(column, ">=")
            if not self._accept("and"):
                self._fail(self._token.at, f"expected 'and' between the two values, found {self._token_text()}")
            return low & self._compare(column, "<=")
        negated = self._accept("not")
        if self._accept("in"):
            condition = self._in(column)
            return ~condition if negated else condition
        if negated or self._token.text not in _COMPARE or self._token.kind != "sign":
            expected = "expected a comparison (= != < <= > >= in between is)"
            self._fail(self._token.at, f"{expected}, found {self._token_text()}")
        return self._compare(column, self._advance().text)

    def _is(self, column: Column) -> Condition:
        negated = self._accept("not")
        types = {"number", "text", "flag"} if isinstance(column, ExtraColumn) else set()
        if not self._token.is_word("missing", "known", "null", *types):
            expected = "'missing', 'known', 'number', 'text' or 'flag'" if types else "'missing' or 'known'"
            self._fail(self._token.at, f"expected {expected}, found {self._token_text()}")
        word = self._advance().text.lower()
        if isinstance(column, ExtraColumn) and word in types:
            column, word = {"number": column.number, "text": column.text, "flag": column.flag}[word], "known"
        return column.is_known() if (word == "known") != negated else column.is_missing()

    def _column(self) -> Column | TagsColumn:
        token = self._token
        if token.kind != "word":
            self._fail(token.at, f"expected the name of a column, found {self._token_text()}")
        if token.text not in NAMES:
            self._fail(token.at, no_column(token.text))
        column = col[token.text]
        if isinstance(column, Column):
            self._build(token.at, check_columns, [column], self._over)
        self._advance()
        if not isinstance(column, ExtraColumn):
            return column
        while self._token.text in ("[", ".") and self._token.kind == "sign":
            column = self._step(column)
        return column

    def _step(self, column: ExtraColumn) -> ExtraColumn:
        if self._advance().text == ".":
            token = self._token
            if token.kind != "word":
                self._fail(token.at, f"expected a key of extra, found {self._token_text()}")
            self._advance()
            return self._build(token.at, column.__getitem__, token.text)
        at = self._token.at
        if self._token.kind not in ("text", "number"):
            self._fail(at, f"expected a quoted key or a list index, found {self._token_text()}")
        deeper = self._build(at, column.__getitem__, self._value())
        self._expect("]", "a closing bracket")
        return deeper

    def _in(self, column: Column) -> Condition:
        self._expect("(", "an opening bracket")
        start = self._token.at
        values: list[Any] = []
        while self._token.text != ")" or self._token.kind != "sign":
            if values:
                self._expect(",", "a comma or a closing bracket")
            at = self._token.at
            value = self._to_time(column, self._value(), at)
            self._build(at, column.in_, [value])
            values.append(value)
        self._advance()
        return self._build(start, column.in_, values)

    def _compare(self, column: Column, sign: str) -> Condition:
        at = self._token.at
        value = self._to_time(column, self._value(), at)
        return self._build(at, _COMPARE[sign], column, value)

    def _value(self) -> Any:
        token = self._token
        if token.kind == "number":
            self._advance()
            try:
                return int(token.text)
            except ValueError:
                pass
            try:
                return float(token.text)
            except ValueError:
                self._fail(token.at, f"{token.text} is not a number")
        if token.kind == "text":
            self._advance()
            quote, inner = token.text[0], token.text[1:-1]
            return _unescape(inner) if quote == '"' else inner.replace("''", "'")
        if token.is_word("true", "false"):
            return self._advance().text.lower() == "true"
        return self._fail(token.at, f"expected a value (a number or a quoted text), found {self._token_text()}")

    def _to_time(self, column: Column, value: Any, at: int) -> Any:
        """Return the datetime that a text means, if the column holds times. Other values stay as they are."""
        if not (column.is_time and isinstance(value, str)):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self._fail(at, f"{column} is a time: give seconds, or a text such as '2026-11-23T10:00:00Z'")
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    def _build(self, at: int, build: Callable[..., T], *arguments: Any) -> T:
        """Call a function, and let an ``InvalidValue`` point at this place of the text."""
        try:
            return build(*arguments)
        except InvalidValue as exc:
            self._fail(at, str(exc))

    # The methods below read tokens.

    def _read_token(self) -> _Token:
        found = _TOKEN.match(self._text, self._next)
        if found is None:
            start = self._next + len(self._text[self._next :]) - len(self._text[self._next :].lstrip())
            what = "this text is not closed" if self._text[start] in "'\"" else "this cannot be read"
            self._fail(start, f"{what}: {self._text[start : start + 20]!r}")
        kind = found.lastgroup
        assert kind is not None
        return _Token(kind, found[kind], found.start(kind))

    def _advance(self) -> _Token:
        token = self._token
        self._next = token.at + len(token.text)
        self._token = self._read_token()
        return token

    def _accept(self, word: str) -> bool:
        """True if the next token is this word. The word is then read."""
        if self._token.is_word(word):
            self._advance()
            return True
        return False

    def _expect(self, sign: str, name: str) -> None:
        if self._token.kind != "sign" or self._token.text != sign:
            self._fail(self._token.at, f"expected {name} {sign!r}, found {self._token_text()}")
        self._advance()

    def _token_text(self) -> str:
        return "the end" if self._token.kind == "end" else repr(self._token.text[:40])

    def _fail(self, at: int, message: str) -> NoReturn:
        start = max(0, min(at - WINDOW // 2, len(self._text) - WINDOW))
        line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", self._text[start : start + WINDOW])
        raise InvalidValue(f"{message}\n  {line}\n  {' ' * (at - start)}^")


def _unescape(text: str) -> str:
    """Read a text in double quotes: with doubled quotes, and with the escapes of JSON as in keys of extra."""
    simple = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}

    def plain(found: re.Match[str]) -> str:
        if found[0] == '""':
            return '"'
        if found[1]:
            return chr(int(found[1], 16))
        return simple.get(found[2], found[2])

    return re.sub(r'""|\\u([0-9a-fA-F]{4})|\\(.)', plain, text, flags=re.DOTALL)
