"""Read a TOML file, and find the lines of all faults and keys: tomllib stops at the first fault."""

import re
import tomllib
from typing import Any

from popkernel.kernel.config.regular_files import read_regular
from popkernel.proto.files.tables import Finding

__all__ = ["line_of", "read_toml"]

_TWICE = ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Duplicate")  # of tomllib's errors
_MOST_ERRORS = 20
_MOST_OCTETS = 1 << 20


def read_toml(path: str) -> tuple[str, dict[str, Any], list[Finding]]:
    """Return the file's text, its values, and a finding for each fault.

    A line that is no TOML is left out, and the rest is read; at most 20 faults are found.
    """
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
            message = str(error)
            place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", message)
            number = (
                int(place[1])
                if place and place[1]
                else len(lines) - lines[::-1].index(next(filter(str.strip, reversed(lines)), ""))
            )
            what = message[: place.start()] if place else message
            mend = "write it as TOML: key = value, texts in quotes"
            if what.startswith(_TWICE):
                what, mend = "this is given twice", "remove one of the two"
            findings.append(Finding(path, number, what, mend))
            if not lines[number - 1].strip():
                break
            lines[number - 1] = ""
    return text, {}, findings


def line_of(text: str, name: str) -> int:
    """Return the line number of a top-level key or table, 1 if it is not found."""
    quoted = re.escape(name)
    found = re.search(rf"^[ \t]*\[*[ \t]*[\"']?{quoted}[\"']?[ \t]*[=.\]]", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1
