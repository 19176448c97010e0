"""Recipe of popkernel itself, started as in the other benchmarks."""

import platform

from benchmarks.peers.recipe import Recipe

RECIPES = [
    Recipe(
        key="popkernel",
        name="popkernel",
        system=None,
        release="",
        packages=(),
        program="",
        language=f"Python {platform.python_version()}",
        separation="a listener without privileges does TLS and the protocol; one process alone has the "
        "hashes; a process with the user's uid for each mailbox in use; seccomp and Landlock for each",
        source="architecture.md",
        prepare=None,
    )
]
