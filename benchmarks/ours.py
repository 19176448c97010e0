"""Start popkernel for a measurement.

It runs its own command with a configuration file made for the row; other keys keep their defaults.
"""

import json
import os
import sys

from popkernel.cli.common.sample_site import HOST, free_ports

from benchmarks.server import Server


class Ours(Server):
    """Run popkernel on a site; further keywords are configuration keys."""

    name = "popkernel"

    def __init__(self, site, *, cost=4, tables=None, **settings):
        self.tls, self.plain = free_ports()
        auth, users = tables or (site.auth_table(cost), site.user_table)
        log = os.path.join(site.directory, "popkernel.log")
        values = {
            "auth_table": auth,
            "user_table": users,
            "cert": site.cert,
            "key": site.key,
            "listen": [f"{HOST}:{self.tls}"],
            "listen_starttls": [f"{HOST}:{self.plain}"],
            "run_dir": os.path.join(site.directory, "run"),
            "hostname": "localhost",
            "log": "stderr",
            "quiet": True,  # the peer's log has no sessions either
            "allow_plaintext": True,
            "lmtp": False,
            "max_sessions": 20000,
            # All load comes from one address, in row M with a thousand logins at once: limits by address
            # would be measured instead of the server.
            "max_sessions_address": 0,
            "max_logins": 0,
            "max_logins_user": 0,
            **site.actor_users(),
            **settings,
        }
        toml = os.path.join(site.directory, "popkernel.toml")
        with open(toml, "w") as file:
            file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in values.items())

        def ready():
            with open(log, "rb") as file:
                return b"popkernel: ready:" in file.read()

        self.launch([sys.executable, "-m", "popkernel", "start", "-f", toml], log, ready)
