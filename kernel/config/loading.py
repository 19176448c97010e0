"""Build the configuration from flags and a TOML file; flags win.

keys.py declares the keys, values.py checks values by kind, and toml.py finds the line of each fault. Nothing
here opens a socket or a table: `popkernel check` checks the files.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import Field
from difflib import get_close_matches
from typing import Any, NamedTuple

from popkernel.kernel.config.addresses import Address
from popkernel.kernel.config.keys import (
    Config,
    address_keys,
    default_of,
    default_run_dir,
    flag_of,
    key_of,
    keys,
)
from popkernel.kernel.config.toml import line_of, read_toml
from popkernel.kernel.config.values import checked
from popkernel.proto.files.tables import Finding

__all__ = ["COMMAND_LINE", "ConfigError", "control_path", "gather", "load", "run_dir_in"]

COMMAND_LINE = "command line"
"""Stands for the file's name in findings about flags."""
MAX_SOCKET_PATH = 100
"""Octets. sun_path has 104 on OpenBSD and 108 on Linux, with a NUL; other sockets there have longer names."""


class ConfigError(Exception):
    """The configuration cannot be used.

    `findings` are all its faults; str() gives a line for each.
    """

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings


def control_path(run_dir: str) -> str:
    """Return the path of the control socket of a run directory.

    Raises:
        ConfigError: the path does not fit in a socket address.
    """
    path = os.path.join(run_dir, "control.sock")
    octets = len(os.fsencode(path))
    if octets > MAX_SOCKET_PATH:
        what = f"a socket in it would have a path of {octets} octets, over {MAX_SOCKET_PATH}"
        raise ConfigError([Finding(run_dir, 0, what, "choose a shorter --run-dir")])
    return path


def load(flags: Mapping[str, Any], toml_path: str | None = None) -> Config:
    """Build the configuration.

    Args:
        flags: values of the command line by key, addresses as text. A missing key or None means not given.
        toml_path: the file of `-f`, or None.

    Raises:
        ConfigError: with all faults, each with file, line and mend.
    """
    config, findings = gather(flags, toml_path)
    if config is None or findings:
        raise ConfigError(findings)
    return config


def gather(flags: Mapping[str, Any], toml_path: str | None = None) -> tuple[Config | None, list[Finding]]:
    """Build the configuration, with defaults for faulty values; return it, and a finding for each fault.

    Arguments as for load(). The configuration is None if nothing of the file could be read.
    """
    text, file_values, findings = read_toml(toml_path) if toml_path else ("", {}, [])
    unread = bool(findings) and not file_values
    values: dict[str, Any] = {}
    known = {key.name: key for key in keys()}
    for name, value in file_values.items():
        where = (toml_path or "", line_of(text, name))
        if name not in known:
            findings.append(_unknown_key(*where, name, list(known)))
        elif flags.get(name) is None:
            _take(known[name], value, where, values, findings)
    for name, value in flags.items():
        if value is not None:
            _take(known[name], value, (f"{COMMAND_LINE}: {flag_of(known[name])}", 0), values, findings)
    for name in ("run_dir", "hostname"):
        values.setdefault(name, default_of(known[name]))
    if unread:  # no further findings about missing keys
        return None, findings
    config = Config(**values)
    findings += _check_whole(config, _Sources(toml_path, text, file_values, flags), faulty=bool(findings))
    return config, findings


def run_dir_in(toml_path: str) -> str:
    """Return the run directory of a configuration file, or the default. Faults of other keys are ignored.

    Raises:
        ConfigError: the file cannot be read, or its run_dir is wrong.
    """
    text, file_values, findings = read_toml(toml_path)
    values: dict[str, Any] = {"run_dir": default_run_dir()}
    if "run_dir" in file_values:
        _take(
            key_of("run_dir"), file_values["run_dir"], (toml_path, line_of(text, "run_dir")), values, findings
        )
    if findings:
        raise ConfigError(findings)
    return str(values["run_dir"])


def _unknown_key(path: str, line: int, name: str, known: list[str]) -> Finding:
    bare = name.replace("-", "_")
    near = get_close_matches(bare, known, n=1)
    # such as "certificate" for "cert"
    near = near or [
        key for key in known if len(key) > 2 and (bare.startswith(key) or bare.partition("_")[2] == key)
    ]
    mend = f"did you mean {near[0]}?" if near else "remove it; `popkernel start --help` lists the keys"
    return Finding(path, line, f"unknown key {name!r}", mend)


def _take(
    key: Field[Any], value: Any, where: tuple[str, int], values: dict[str, Any], findings: list[Finding]
) -> None:
    try:
        values[key.name] = checked(value, key.metadata)
    except ValueError as error:
        what, semicolon, mend = str(error).partition("; ")
        findings.append(
            Finding(*where, f"{key.name}: {what}", mend if semicolon else "see `popkernel start --help`")
        )


class _Sources(NamedTuple):
    """Find out where a key was given, for findings about several keys."""

    toml_path: str | None
    text: str
    file_values: Mapping[str, Any]
    flags: Mapping[str, Any]

    def has_line(self, name: str) -> bool:
        """Return whether the file has a line for a key, be it a faulty one, which has a finding already."""
        return re.search(rf"^[ \t]*{name}[ \t]*=", self.text, re.MULTILINE) is not None

    def of(self, name: str) -> tuple[str, int]:
        """Return file and line for findings about a key."""
        if self.flags.get(name) is None and name in self.file_values:
            return self.toml_path or "", line_of(self.text, name)
        if self.flags.get(name) is None and self.toml_path:
            return self.toml_path, 0
        return COMMAND_LINE, 0


def _check_whole(config: Config, sources: _Sources, *, faulty: bool) -> list[Finding]:
    """Check for missing keys, and for keys that conflict. `faulty`: there are other findings already."""
    findings: list[Finding] = []
    for key in keys():
        if not key.metadata["required"]:
            continue
        name = key.name
        given = sources.flags.get(name) is not None or name in sources.file_values or sources.has_line(name)
        if not given:
            what = "no " + name.replace("_", " ").replace("auth ", "authorization ")
            mend = f"give {flag_of(key)} FILE, or {name} in the file of -f"
            findings.append(Finding(sources.toml_path or COMMAND_LINE, 0, what, mend))
    if not (config.listen or config.listen_starttls or faulty):
        mend = "give -l ADDR for TLS on port 995, or -L ADDR for STLS on port 110"
        findings.append(Finding(sources.toml_path or COMMAND_LINE, 0, "no address to listen on", mend))
    seen: dict[Address, str] = {}
    for name in address_keys():
        for address in getattr(config, name):
            if address.port and address in seen:
                findings.append(
                    Finding(*sources.of(name), f"{address} is listened on twice", "remove one of the two")
                )
            seen[address] = name
    for address in config.lmtp_listen:
        if not address.is_loopback:
            what = f"lmtp_listen: {address} is no loopback address, and LMTP asks for no password"
            findings.append(Finding(*sources.of("lmtp_listen"), what, "write 127.0.0.1 or [::1]"))
    findings += _check_tokens(config, sources)
    try:
        control_path(config.run_dir)
    except ConfigError as error:
        findings += error.findings
    return findings


def _check_tokens(config: Config, sources: _Sources) -> list[Finding]:
    """Check that issuer, audience and keys of tokens are all given, or none of them."""
    needed = ("oauth_issuer", "oauth_audience", "oauth_jwks")
    given = [
        name
        for name in (*needed, "oauth_user_claim", "oauth_scope")
        if sources.flags.get(name) or sources.file_values.get(name)
    ]
    lacking = [name for name in needed if not getattr(config, name)]
    if lacking and given:
        what = f"tokens are configured in part: {', '.join(lacking)} is missing"
        return [
            Finding(
                *sources.of(given[0]),
                what,
                f"give {' and '.join(lacking)} too, or leave out every oauth_ key",
            )
        ]
    if given and not config.oauth_user_claim:
        return [
            Finding(*sources.of("oauth_user_claim"), "oauth_user_claim is empty", 'write "email" or "sub"')
        ]
    return []
