"""Names and texts of somebody who wishes the reader ill: for terminals, browsers, spreadsheets and formatters."""

from __future__ import annotations

TERMINAL = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "C1": "\x9b31m\x9d0;owned\x9c\x85",
    "overwrite": "sound\rowned\x08\x08\x08",
    "bell and delete": "\x07\x7f\x0b\x0c",
    "lines": "one\ntwo\u2028three\u2029four",
    "backwards": "user\u202e\u2066fdp.exe\u2069\u202c",
    "without width": "a\u200b\u200d\ufeffb\xad",
    "private and unassigned": "\ue000\U000e0041\uffff",
    "markup": "[red]red[/red] [link=http://evil.example]x[/link] [/nope] [bold",
    "format": "{0} {task.description} %s %(x)s $HOME :smile:",
    "wide": "数据 données ▁▂█ …",
}
"""By what they try. All can be names of memstore: no NUL, no lone surrogate."""

BROWSER = {
    "script": "<script>alert(1)</script>",
    "attribute": "\" onmouseover='alert(1)",
    "end of script": "</script><img src=x onerror=alert(1)>",
    "comment": "<!-- --> &amp; &#x3c;",
    "template": "${alert(1)} {{7*7}} `alert(1)`",
}

SPREADSHEET = {
    "formula": '=HYPERLINK("http://evil.example","x")',
    "command": "@SUM(1+1)*cmd|' /C calc'!A0",
    "plus": "+1+1",
    "minus": "-1+1",
    "quotes": 'a,"b"\t;c',
}

DATABASE = {
    "statement": "x'; DROP TABLE episode; --",
    "identifier": 'a"b`c]d',
    "wildcard": "%_*?",
}

NAMES = {**TERMINAL, **BROWSER, **SPREADSHEET, **DATABASE}

SURROGATE = "\udcff\ud83d"
"""What no database stores; the operating system's arguments and a damaged file may hold it."""
