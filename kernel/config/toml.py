"""A TOML file, read with the line of each fault: tomllib stops at the first, and does not tell where a key stands."""

import re
import tomllib
from typing import Any

from popkernel.kernel.config.regular_files import read_regular
from popkernel.proto.files.tables import Finding

__all__ = ["line_of", "read_toml"]

_TWICE = ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Duplicate")  # tomllib's words
_MOST_ERRORS = 20
_MOST_OCTETS = 1 << 20


def read_toml(path: str) -> tuple[str, dict[str, Any], list[Finding]]:
    """Text, values, and what is wrong with the file; a line that is no TOML is left out, and the rest read on."""
    findings: list[Finding] = []
    try:
        text = read_regular(path, _MOST_OCTETS).decode("utf-8")
    except OSError as error:
        mend = "name the right file with -f, readable by the user who starts the server"
        return "", {}, [Finding(path, 0, error.strerror or "cannot be read", mend)]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return "", {}, [Finding(path, line, "the file is not UTF-8", "save it as UTF-8")]
    lines = text.split("\n")
    while len(findings) < _MOST_ERRORS:
        try:
            return text, tomllib.loads("\n".join(lines)), findings
        except tomllib.TOMLDecodeError as error:
            said = str(error)
            place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", said)
            number = int(place[1]) if place and place[1] else len(lines) - lines[::-1].index(next(filter(str.strip, reversed(lines)), ""))
            what = said[: place.start()] if place else said
            mend = "write it as TOML: key = value, texts in quotes"
            if what.startswith(_TWICE):
                what, mend = "this is given twice", "remove one of the two"
            findings.append(Finding(path, number, what, mend))
            if not lines[number - 1].strip():
                break
            lines[number - 1] = ""
    return text, {}, findings


def line_of(text: str, name: str) -> int:
    """Find the line a top-level key or table stands on: tomllib does not tell."""
    quoted = re.escape(name)
    found = re.search(rf"^[ \t]*\[*[ \t]*[\"']?{quoted}[\"']?[ \t]*[=.\]]", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1
