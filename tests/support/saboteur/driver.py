"""Run `popkernel` with a saboteur in every process: `python driver.py PLAN start -f ...`.

The plan is a JSON file, described in wrapper.py.
"""

import json
import os
import sys
import tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import wrapper  # noqa: E402
from popkernel.cli.main import main  # noqa: E402
from popkernel.kernel.init import main as init  # noqa: E402


def complete(plan):
    """Fill in what only the site knows: another user's maildir, and a port with a listener."""
    with open(plan) as file:
        data = json.load(file)
    toml = sys.argv[sys.argv.index("-f") + 1]
    with open(toml, "rb") as file:
        address, _, port = tomllib.load(file)["listen"][0].rpartition(":")
    other = os.path.join(os.path.dirname(toml), "mail", data["other"])
    mail = os.listdir(other + "/new")
    data["place"] |= {
        "other": other,
        "other_mail": f"{other}/new/{mail[0] if mail else ''}",
        "address": address,
        "port": int(port),
    }
    with open(plan, "w") as file:
        json.dump(data, file)


if __name__ == "__main__":
    plan = sys.argv.pop(1)
    complete(plan)
    init.BOOT = ["-c", f"import sys; sys.path.insert(0, {HERE!r}); import wrapper; wrapper.main({plan!r})"]
    wrapper.install(plan, "init")
    # as a call: run as a program it would close the saboteur's descriptors
    raise SystemExit(main(sys.argv[1:]))
