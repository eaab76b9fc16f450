"""Makes text safe for a terminal: it shows the text and does not obey it. All names and texts from a file pass here."""

from __future__ import annotations


def visible(text: str) -> str:
    """Return the text in one line. Characters that do not print become escapes such as ``\\x1b`` or ``\\u202e``.

    These are control characters (with line breaks and the beginning of escape sequences), marks that change the
    direction of text, characters without width, private and unassigned characters, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else escaped(character) for character in text)


def visible_lines(text: str) -> str:
    """Return the text with ``visible`` applied to each line. Line feeds stay."""
    return text if text.isprintable() else "\n".join(map(visible, text.split("\n")))


def escaped(character: str) -> str:
    """Return the character as an escape in ASCII: ``\\x1b``, ``\\u2588``."""
    return character.encode("unicode_escape", "surrogatepass").decode()
