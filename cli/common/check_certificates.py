"""What ``popkernel check`` says of certificate chains and their keys: what a listener would say, and what is worth knowing besides."""

from collections.abc import Sequence

from popkernel.actors.listener.certificates import Phrase, same_names
from popkernel.actors.listener.tls import examine
from popkernel.proto.files.tables import Finding

__all__ = ["check_certificate", "check_certificates"]


def check_certificate(cert_path: str, key_path: str, phrase_path: str = "", least: str = "1.3") -> tuple[list[Finding], list[Finding]]:
    """Look at one chain and its key, see check_certificates()."""
    return check_certificates([(cert_path, key_path)], phrase_path, least)


def check_certificates(
    pairs: Sequence[tuple[str, str]], phrase_path: str = "", least: str = "1.3", now: float | None = None, notes: list[str] | None = None,
) -> tuple[list[Finding], list[Finding]]:
    """Look at chains and keys: readable, well-formed, matching, in order, in time, with names, the keys kept secret.

    Args:
        pairs: PEM files of the chain, the server's own certificate first, and of the private key.
        phrase_path: file whose first line opens the keys, should they have a pass phrase; "" for none, which a start may ask for.
        least: lowest version of TLS, as the key tls_min has it.
        now: seconds since the epoch, for tests; None asks the clock.
        notes: gets what is no fault where it is meant, and worth knowing.

    Returns:
        Errors and warnings. An open key keeps no start from serving, and is an error here.

    """
    phrase: Phrase = phrase_path or None
    errors: list[Finding] = []
    warnings: list[Finding] = []
    chains = []
    for (cert, _), looked in zip(pairs, examine(pairs, least, phrase, now), strict=True):
        errors += [*looked.doubts, *looked.errors]
        warnings += looked.warnings
        if looked.chain and looked.chain[0].own and notes is not None:
            notes.append(f"{cert}:{looked.chain[0].line}: the certificate is signed by itself: clients must be told to trust it")
        chains.append((cert, looked.chain))
    warnings += same_names(chains)
    return list(dict.fromkeys(errors)), list(dict.fromkeys(warnings))
