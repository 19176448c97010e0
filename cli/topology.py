"""`popkernel topology`: the table, as it is compiled into this very program."""

import argparse
import json

from popkernel.proto import topology_rendering


def run(options: argparse.Namespace) -> int:
    """Print it in the format asked for."""
    if options.format == "json":
        print(json.dumps(topology_rendering.as_data(), indent=2))
    else:
        forms = {"text": topology_rendering.as_text, "mermaid": topology_rendering.as_mermaid, "dot": topology_rendering.as_dot}
        print(forms[options.format](), end="")
    return 0
