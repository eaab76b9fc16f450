"""Text that a terminal shows and does not obey. What users named, and what a file holds, passes through here."""

from __future__ import annotations


def visible(text: str) -> str:
    """The text in one line, with everything that does not print as escapes such as ``\\x1b`` or ``\\u202e``.

    What does not print are control characters (those of escape sequences and line breaks among them), marks that
    change the direction of text, characters without width, private and unassigned ones, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else escaped(character) for character in text)


def visible_lines(text: str) -> str:
    """``visible`` for each line; line feeds stay."""
    return text if text.isprintable() else "\n".join(map(visible, text.split("\n")))


def escaped(character: str) -> str:
    """The character as Python writes it in ASCII: ``\\x1b``, ``\\u2588``."""
    return character.encode("unicode_escape", "surrogatepass").decode()
