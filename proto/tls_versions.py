"""Convert between names of TLS versions and the numbers in messages: 13 is TLS 1.3, 0 is no TLS. Pure."""

__all__ = ["tls_name", "tls_number"]

_NUMBERS = {"TLSv1": 10, "TLSv1.1": 11, "TLSv1.2": 12, "TLSv1.3": 13}


def tls_number(version: str | None) -> int:
    """Return the number of a version as `SSLSocket.version()` names it; 0: none, or an unknown one."""
    return _NUMBERS.get(version or "", 0)


def tls_name(number: int) -> str:
    """Return the version's number as people write it, "1.3"; "" for none."""
    return f"{number // 10}.{number % 10}" if number else ""
