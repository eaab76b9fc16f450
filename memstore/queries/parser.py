"""The text of a query, such as ``loss > 2 and domain = 'math'``, read to the condition it means.

Grammar, keywords in any case::

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
from typing import Any, Literal, NoReturn, TypeVar

from memstore.errors import InvalidValue
from memstore.queries import (
    MAX_DEPTH,
    NAMES,
    Column,
    Condition,
    ExtraColumn,
    HasTag,
    TagsColumn,
    col,
    conditions_within,
    no_column,
)
from memstore.values.shown import shown

T = TypeVar("T")

MAX_LENGTH = 10_000
WINDOW = 60
"""Characters of a long text shown around the place of an error."""

EXAMPLE = "loss > 2 and domain = 'math'"

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
_COMPARE: dict[str, Callable[..., Condition]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.lower() in words


def parse(text: str, *, over: Literal["episodes", "history"] = "episodes") -> Condition:
    """The condition that a text means; the inverse of ``str(condition)``.

    Parameters
    ----------
    text : str
        At most 10,000 characters.
    over : "episodes" or "history"
        What it is asked of; episodes have no columns of the history.

    Raises
    ------
    InvalidValue
        With the text, a mark under the place that could not be read, and what was expected there.
    """
    if not isinstance(text, str):
        raise InvalidValue(f"a query is a text such as {EXAMPLE!r}, got {text!r:.80}")
    if len(text) > MAX_LENGTH:
        raise InvalidValue(f"a query has at most {MAX_LENGTH:,} characters, this one has {len(text):,}")
    if not text.strip():
        raise InvalidValue(f"the query is empty; write for example: {EXAMPLE}")
    return _Parser(text, over).whole()


def as_condition(given: Condition | str, *, over: Literal["episodes", "history"] = "episodes") -> Condition:
    """A condition from itself or from its text, as on the command line.

    Raises
    ------
    InvalidValue
        When it is neither, or asks episodes for a column of the history.
    """
    if isinstance(given, str):
        return parse(given, over=over)
    if not isinstance(given, Condition):
        raise InvalidValue(
            f"expected a condition such as col.loss > 1, or a text such as {EXAMPLE!r}, got {shown(given)}"
        )
    for test in conditions_within(given) if over == "episodes" else ():
        if not isinstance(test, HasTag) and test.column.source == "history":
            raise InvalidValue(f"this is asked of live episodes, and {test.column} belongs to the history")
    return given


class _Parser:
    def __init__(self, text: str, over: str) -> None:
        self._text, self._over = text, over
        self._next = 0
        self._token = self._read()
        self._depth = 0

    def whole(self) -> Condition:
        condition = self._any()
        if self._token.kind != "end":
            self._fail(self._token.at, f"expected 'and', 'or' or the end, found {self._found()}")
        return condition

    def _any(self) -> Condition:
        found = self._all()
        while self._word("or"):
            at, more = self._token.at, self._all()
            found = self._checked(at, operator.or_, found, more)
        return found

    def _all(self) -> Condition:
        found = self._single()
        while self._word("and"):
            at, more = self._token.at, self._single()
            found = self._checked(at, operator.and_, found, more)
        return found

    def _single(self) -> Condition:
        at = self._token.at
        if not (self._token.is_word("not") or self._token.text == "("):
            return self._test()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(at, f"conditions are nested more than {MAX_DEPTH} deep")
        found: Condition
        if self._word("not"):
            found = ~self._single()
        else:
            self._advance()
            found = self._any()
            self._sign(")", "a closing bracket")
        self._depth -= 1
        return found

    def _test(self) -> Condition:
        column = self._column()
        if isinstance(column, TagsColumn):
            if not self._word("has"):
                self._fail(self._token.at, f"expected \"has 'tag'\" after tags, found {self._found()}")
            at, tag = self._token.at, self._value()
            return self._checked(at, column.has, tag)
        if self._word("is"):
            return self._known(column)
        if self._word("between"):
            low = self._compared(column, ">=")
            if not self._word("and"):
                self._fail(self._token.at, f"expected 'and' between the two values, found {self._found()}")
            return low & self._compared(column, "<=")
        without = self._word("not")
        if self._word("in"):
            listed = self._listed(column)
            return ~listed if without else listed
        if without or self._token.text not in _COMPARE or self._token.kind != "sign":
            self._fail(self._token.at, f"expected a comparison (= != < <= > >= in between is), found {self._found()}")
        return self._compared(column, self._advance().text)

    def _known(self, column: Column) -> Condition:
        without = self._word("not")
        types = {"number", "text", "flag"} if isinstance(column, ExtraColumn) else set()
        if not self._token.is_word("missing", "known", "null", *types):
            expected = "'missing', 'known', 'number', 'text' or 'flag'" if types else "'missing' or 'known'"
            self._fail(self._token.at, f"expected {expected}, found {self._found()}")
        what = self._advance().text.lower()
        if isinstance(column, ExtraColumn) and what in types:
            column, what = {"number": column.number, "text": column.text, "flag": column.flag}[what], "known"
        return column.is_known() if (what == "known") != without else column.is_missing()

    def _column(self) -> Column | TagsColumn:
        token = self._token
        if token.kind != "word":
            self._fail(token.at, f"expected the name of a column, found {self._found()}")
        if token.text not in NAMES:
            self._fail(token.at, no_column(token.text))
        column = col[token.text]
        if isinstance(column, Column) and column.source == "history" and self._over != "history":
            self._fail(token.at, f"{column} belongs to the history: ask for that (--history, or query('history'))")
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
                self._fail(token.at, f"expected a key of extra, found {self._found()}")
            self._advance()
            return self._checked(token.at, column.__getitem__, token.text)
        at = self._token.at
        if self._token.kind not in ("text", "number"):
            self._fail(at, f"expected a quoted key or a place in a list, found {self._found()}")
        deeper = self._checked(at, column.__getitem__, self._value())
        self._sign("]", "a closing bracket")
        return deeper

    def _listed(self, column: Column) -> Condition:
        self._sign("(", "an opening bracket")
        start = self._token.at
        values: list[Any] = []
        while self._token.text != ")" or self._token.kind != "sign":
            if values:
                self._sign(",", "a comma or a closing bracket")
            at = self._token.at
            value = self._converted(column, self._value(), at)
            self._checked(at, column.in_, [value])
            values.append(value)
        self._advance()
        return self._checked(start, column.in_, values)

    def _compared(self, column: Column, sign: str) -> Condition:
        at = self._token.at
        value = self._converted(column, self._value(), at)
        return self._checked(at, _COMPARE[sign], column, value)

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
                self._fail(token.at, f"{token.text} is no number")
        if token.kind == "text":
            self._advance()
            quote, inner = token.text[0], token.text[1:-1]
            return _unescaped(inner) if quote == '"' else inner.replace("''", "'")
        if token.is_word("true", "false"):
            return self._advance().text.lower() == "true"
        return self._fail(token.at, f"expected a value (a number or a quoted text), found {self._found()}")

    def _converted(self, column: Column, value: Any, at: int) -> Any:
        if not (column.is_time and isinstance(value, str)):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self._fail(at, f"{column} is a time: seconds, or a text such as '2026-11-23T10:00:00Z'")
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    def _checked(self, at: int, build: Callable[..., T], *given: Any) -> T:
        try:
            return build(*given)
        except InvalidValue as exc:
            self._fail(at, str(exc))

    # Tokens

    def _read(self) -> _Token:
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
        self._token = self._read()
        return token

    def _word(self, word: str) -> bool:
        if self._token.is_word(word):
            self._advance()
            return True
        return False

    def _sign(self, sign: str, what: str) -> None:
        if self._token.kind != "sign" or self._token.text != sign:
            self._fail(self._token.at, f"expected {what} {sign!r}, found {self._found()}")
        self._advance()

    def _found(self) -> str:
        return "the end" if self._token.kind == "end" else repr(self._token.text[:40])

    def _fail(self, at: int, message: str) -> NoReturn:
        start = max(0, min(at - WINDOW // 2, len(self._text) - WINDOW))
        line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", self._text[start : start + WINDOW])
        raise InvalidValue(f"{message}\n  {line}\n  {' ' * (at - start)}^")


def _unescaped(text: str) -> str:
    """What stands between double quotes: doubled quotes, and the escapes in which ``str`` writes a key of extra."""
    simple = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}

    def plain(found: re.Match[str]) -> str:
        if found[0] == '""':
            return '"'
        if found[1]:
            return chr(int(found[1], 16))
        return simple.get(found[2], found[2])

    return re.sub(r'""|\\u([0-9a-fA-F]{4})|\\(.)', plain, text, flags=re.DOTALL)
