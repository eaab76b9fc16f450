"""Docstrings and comments are plain English, as far as a test can tell.

Read them aloud to somebody who learned English at school; this test only finds the constructions that proved to be
reliable signs of a sentence that is hard to read.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "memstore"
MODULES = sorted(PACKAGE.rglob("*.py"))
MIGRATIONS = sorted((PACKAGE.parent / "migrations").rglob("*.py"))
LONGEST = 120

FORBIDDEN: dict[str, str] = {
    r"\bWhether\b": 'begin with "True if"',
    r"\bof which\b": "begin a new sentence with the noun",
    r"\bwhat of\b|\bof what\b": "name the thing with a noun",
    r"\bwhose\b[^.,;:()]*\b(is|are)\b": 'use "with" or a new sentence',
    r"\b(after|of|in|for|by|than|with) so (many|much|few)\b": "name the parameter that gives the number",
    r"\b(anew|whoever|thereof|whereof|likewise|hence|withal)\b": "use a common word",
    r"\b[Bb]ut for\b": 'write "except"',
    r"\bfor the sake of\b": 'write "because of"',
    r"\bin vain\b": 'write "without success"',
    r"\bas (one|it|they) likes?\b": 'write "may"',
    r"; returns?\b": 'write "..., and return ..."',
    r"\bat (most|least) so many\b": "name the number: the parameter, or the unit",
    r"[,;] for (?=(it|they|that|this|he|nobody|there) (is|are|was|may|has|have|does|can|would|will)\b)": (
        'write "because"'
    ),
    r"\bwhat (comes|came|others|becomes|remains|stands|happened)\b": "name the thing with a noun",
    r"\bhow things stand\b": "name the facts",
    r"\bof then\b|\bunasked\b|\bthe former of\b|\bthe latter\b": "name the moment or the thing",
    r"\b(tells?|told|telling) of\b": 'write "report"',
    r"\b(thus|lest|albeit|thereby|whereby|therein|herein|wherein)\b": "use a common word",
}
"""Constructions that no docstring and no comment may have, with advice."""

OPENINGS = r"(What|Who|Whom|Whose|Whether|Where|Which|How|Why|Of|As|And|But|Not|\.\.\.)(?!\w)"
"""No docstring begins like this: these words begin half a sentence."""

NOUN_PHRASES = r"(The|A|An|Its|Their|Those|These|All|Every|Each|Some|No|How|One|Several)\b"
"""No docstring of a function begins like this: it begins with the verb. A property may begin with a noun.

So may a command, because its docstring is the help that users see.
"""

VERBS = (
    r"\b(is|are|was|were|has|have|had|may|must|can|cannot|does|do|will|would|"
    r"(add|allow|answer|ask|begin|belong|break|call|carr|change|choose|come|compare|compute|contain|convert|copie|copy|cost|"
    r"count|cover|decide|draw|end|find|fit|follow|get|give|go|grow|hold|join|keep|last|lead|learn|lock|open|leave|let|lie|limit|look|"
    r"make|mark|mean|measure|name|need|notifie|own|pass|point|print|project|put|read|refuse|remember|remove|replace|"
    r"report|return|run|say|see|select|send|set|share|show|sort|stand|start|stay|stop|store|suit|surv|survive|take|"
    r"tell|test|turn|use|wait|want|wake|work|write)(s|es|ies)?)\b"
)
"""A constant's docstring has one of these verbs in its first sentence. Add a verb that is missing here."""

everywhere = pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Definition = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Docstring:
    """A docstring with the node that it describes: a module, class, function, or the assignment of a constant."""

    name: str
    text: str
    line: int
    node: ast.AST

    @property
    def summary(self) -> str:
        """The first line."""
        return self.text.split("\n", 1)[0]

    @property
    def is_property(self) -> bool:
        """True if the node is a property."""
        return bool({"property", "cached_property"} & decorators(self.node))

    @property
    def is_function(self) -> bool:
        """True if the node is a function that is neither a property nor a command."""
        noun = {"property", "cached_property", "command", "group"} & decorators(self.node)
        return isinstance(self.node, Function) and not noun

    @property
    def is_flag(self) -> bool:
        """True if the node is a constant True or False, or a property that returns a bool."""
        if isinstance(self.node, Function):
            return self.is_property and returns_bool(self.node)
        value = getattr(self.node, "value", None)
        return isinstance(value, ast.Constant) and isinstance(value.value, bool)


def decorators(node: ast.AST) -> set[str]:
    """Return the names of a function's decorators, without their modules."""
    return {ast.unparse(one).partition("(")[0].rpartition(".")[2] for one in getattr(node, "decorator_list", [])}


def returns_bool(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True if the function is annotated to return a bool."""
    return node.returns is not None and ast.unparse(node.returns) == "bool"


def docstrings(module: Path) -> Iterator[Docstring]:
    """Yield all docstrings of a module, private ones and those of constants included."""
    tree = ast.parse(module.read_text(encoding="utf-8"), str(module))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *Definition)):
            text = ast.get_docstring(node)
            if text is not None:
                yield Docstring(getattr(node, "name", "the module"), text, getattr(node, "lineno", 1), node)
        body = getattr(node, "body", [])
        for constant, text_node in pairwise(body if isinstance(body, list) else ()):
            if isinstance(constant, (ast.Assign, ast.AnnAssign)) and is_text(text_node):
                target = constant.targets[0] if isinstance(constant, ast.Assign) else constant.target
                yield Docstring(ast.unparse(target), text_node.value.value, text_node.lineno, constant)


def is_text(node: ast.AST) -> bool:
    """True if the statement is a bare text, as a docstring is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def comments(module: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments of a module, with the number of their lines. Consecutive lines are one comment."""
    line, text = -1, ""
    for token in tokenize.generate_tokens(io.StringIO(module.read_text(encoding="utf-8")).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] == line + 1:
            text += token.string.removeprefix("#")
        else:
            if text:
                yield line, text
            text = token.string
        line = token.start[0]
    if text:
        yield line, text


CLASSES: dict[str, list[ast.ClassDef]] = {}
"""All classes of the package, by name."""

for _module in MODULES:
    for _node in ast.walk(ast.parse(_module.read_text(encoding="utf-8"))):
        if isinstance(_node, ast.ClassDef):
            CLASSES.setdefault(_node.name, []).append(_node)


def documents(owner: ast.ClassDef, method: str) -> bool:
    """True if the class itself documents the method."""
    return any(isinstance(one, Function) and one.name == method and ast.get_docstring(one) for one in owner.body)


def base_names(owner: ast.ClassDef) -> list[str]:
    """Return the names of the base classes, without their parameters."""
    return [ast.unparse(base).partition("[")[0] for base in owner.bases]


def inherits_docstring(owner: ast.ClassDef, method: str) -> bool:
    """True if a base class in memstore, or any protocol of memstore, documents the method."""
    protocols = [one for ones in CLASSES.values() for one in ones if "Protocol" in base_names(one)]
    if any(documents(one, method) for one in protocols):
        return True
    bases = [one for name in base_names(owner) for one in CLASSES.get(name, [])]
    return any(documents(base, method) or inherits_docstring(base, method) for base in bases)


def undocumented(body: list[ast.stmt], owner: ast.ClassDef | None = None) -> Iterator[str]:
    """Yield the public functions, classes and methods that have no docstring and inherit none."""
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        if {"overload", "setter"} & decorators(node):
            continue
        if ast.get_docstring(node) is None and not (owner is not None and inherits_docstring(owner, node.name)):
            yield f"{node.name}, line {node.lineno}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, node)


def hard_to_read(text: str) -> list[str]:
    """Return the forbidden constructions in a text, each with advice."""
    plain = " ".join(text.split())
    return [f"{found[0]!r}: {advice}" for sign, advice in FORBIDDEN.items() for found in re.finditer(sign, plain)]


@pytest.mark.parametrize(
    "text",
    [
        "Whether a draw among `live` episodes is going to need the population, so few of them were in it.",
        "As many of the former as a database can hold add up to a float, and a mean of the latter is not 0.",
        "One in so many more than must be kept may be there, or 64.",
        "What of it is done says the configuration.",
        "Losses of which the largest is a thousand times the smallest have a logarithmic axis.",
    ],
)
def test_sentences_that_readers_stumbled_over_are_found(text: str) -> None:
    assert hard_to_read(text) or not is_whole(text)


@pytest.mark.parametrize(
    "text",
    [
        "True if so few episodes matched last time that rejection sampling would be slow.",
        "Values are clamped to +-1e290 so that a sum cannot overflow.",
        "The configuration decides which of these steps run.",
        "After a lost connection the server may have dropped recent commits, so the state must be read again.",
    ],
)
def test_plain_sentences_pass(text: str) -> None:
    assert hard_to_read(text) == [] and is_whole(text)


@everywhere
def test_everything_public_has_a_docstring(module: Path) -> None:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) is not None
    assert list(undocumented(tree.body)) == []


def is_whole(summary: str) -> bool:
    """True if the line can be a whole sentence: it ends in a full stop, and no word opens half a sentence."""
    return summary.endswith(".") and not summary.endswith("...") and re.match(OPENINGS, summary) is None


@everywhere
def test_a_docstring_begins_with_one_whole_sentence(module: Path) -> None:
    wrong = [
        f"{one.name}, line {one.line}: {one.summary}"
        for one in docstrings(module)
        if len(one.summary) > LONGEST or not is_whole(one.summary)
    ]
    assert not wrong, "\n".join(["the first line is a whole sentence, and begins with its verb or its noun:", *wrong])


@everywhere
def test_the_docstring_of_a_constant_is_a_whole_sentence(module: Path) -> None:
    body = ast.parse(module.read_text(encoding="utf-8")).body
    texts = [
        (ast.unparse(constant).partition(" =")[0], re.split(r"\.(?=\s|$)", ast.literal_eval(ast.unparse(text)))[0])
        for constant, text in pairwise(body)
        if isinstance(constant, (ast.Assign, ast.AnnAssign)) and is_text(text)
    ]
    wrong = [f"{name}: {sentence}" for name, sentence in texts if not re.search(VERBS, sentence)]
    assert not wrong, "\n".join(["a constant has a sentence with a verb:", *wrong])


@everywhere
def test_a_function_says_what_it_does(module: Path) -> None:
    wrong = [
        f"{one.name}, line {one.line}: {one.summary}"
        for one in docstrings(module)
        if one.is_function and re.match(NOUN_PHRASES, one.summary)
    ]
    assert not wrong, "\n".join(["begin with the verb:", *wrong])


@everywhere
def test_a_flag_says_when_it_is_true(module: Path) -> None:
    wrong = [f"{one.name}, line {one.line}" for one in docstrings(module) if one.is_flag and "True if" not in one.text]
    assert not wrong, "\n".join(['begin with "True if":', *wrong])


@everywhere
def test_no_sentence_has_a_construction_that_is_hard_to_read(module: Path) -> None:
    texts = [(one.line, one.text) for one in docstrings(module)] + list(comments(module))
    wrong = [f"line {line}: {sign}" for line, text in texts for sign in hard_to_read(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", MIGRATIONS, ids=lambda module: module.stem)
def test_migrations_are_in_plain_english_too(module: Path) -> None:
    texts = [one.text for one in docstrings(module)] + [text for _, text in comments(module)]
    assert [sign for text in texts for sign in hard_to_read(text)] == []
    assert [one.summary for one in docstrings(module) if not is_whole(one.summary)] == []
