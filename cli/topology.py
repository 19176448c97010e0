"""`popkernel topology`: the table, as it is compiled into this very program."""

import argparse
import json

from popkernel.proto import render


def run(options: argparse.Namespace) -> int:
    """Print it in the format asked for."""
    if options.format == "json":
        print(json.dumps(render.as_data(), indent=2))
    else:
        print({"text": render.as_text, "mermaid": render.as_mermaid, "dot": render.as_dot}[options.format](), end="")
    return 0
