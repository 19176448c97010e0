"""Start another server as the benchmark does: its mail is right, and nothing of it stays.

Dovecot, as this machine has it, since the tests install it.
"""

import os
import subprocess

import pytest

from benchmarks.mailsite import Site
from benchmarks.peers import __main__ as program
from benchmarks.peers.measure import Contestant, check_mail, tls_versions
from benchmarks.peers.place import root_for

OVERLAY = (
    "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/m && "
    "mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/m"
)


@pytest.mark.root("another server is run in mount and process namespaces")
@pytest.mark.parametrize("mode", ["fast", "secure"])
def test_a_recipe_serves_the_mail_and_leaves_nothing(tmp_path, mode):
    found = [
        (recipe, *root_for("/nowhere", recipe))
        for key, recipe in program.RECIPES.items()
        if key.startswith("dovecot") and key.endswith(mode)
    ]
    recipe, root, version = next((each for each in found if each[2]), (None, "", ""))
    if recipe is None:
        pytest.skip("no dovecot-pop3d 2.3 or 2.4 from a package here")
    if subprocess.run(
        ["unshare", "--mount", "sh", "-c", OVERLAY], capture_output=True, check=False
    ).returncode:
        pytest.skip("no overlay can be mounted here")
    tmp_path.chmod(0o755)
    site = Site(str(tmp_path / "site"), quick=True, users=2, active=2)
    contestant = Contestant(site, recipe, root)
    with contestant.start() as server:
        check_mail(site, recipe, server.tls)
        assert {"1.2", "1.3"} <= set(tls_versions(server.tls).split(", "))
        pids = server.pids()
        assert len(pids) > 3
    assert version.startswith(recipe.version)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert not os.path.exists("/srv/dovecot")
    assert os.listdir(f"{contestant.place.directory}/over") == []
