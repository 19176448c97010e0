"""Build Debian's package, and install, use, upgrade, remove and purge it in a Debian 13, under its systemd.

The package is of what was committed: `make deb` and the system are tests/debian13.sh's.
"""

import os
import re
import shutil
import subprocess
import tomllib

import pytest

from tests.support.debian_system import BASE, DebianSystem

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
pytestmark = [pytest.mark.slow, pytest.mark.root("debootstrap, mounts and namespaces need root")]

POLICY = """\
#!/bin/sh
# No service may start: there is no systemd yet.
exit 101
"""
UNIT = "/usr/lib/systemd/system/popkernel.service"
KERNEL = """popkernel status --json | python3 -c "
import json, sys
print(next(actor['pid'] for actor in json.load(sys.stdin)['actors'] if actor['name'] == 'kernel'))"
"""


@pytest.fixture(scope="module")
def package():
    """Build the package; lintian finds neither errors nor warnings."""
    if shutil.which("debootstrap") is None:
        pytest.skip("needs debootstrap(8)")
    built = subprocess.run(
        ["sh", f"{TREE}/tests/debian13.sh"],
        env={**os.environ, "TARGET": "deb", "IN": BASE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = re.findall(r"(?m)^made (dist/\S+)$", built.stdout)
    return f"{TREE}/{made}"


@pytest.fixture(scope="module")
def system(package):
    """Install the package in a fresh system; systemd does not run yet."""
    with DebianSystem() as running:
        running.write("/usr/sbin/policy-rc.d", POLICY)
        os.chmod(running.path("/usr/sbin/policy-rc.d"), 0o755)
        shutil.copy(package, running.path("/root/popkernel.deb"))
        shutil.copy(f"{TREE}/packaging/debian/tests/serve", running.path("/root/serve"))
        running.run(
            """
            apt-get -qq update
            apt-get -qq install -y --no-install-recommends /root/popkernel.deb curl openssl
            """
        )
        os.unlink(running.path("/usr/sbin/policy-rc.d"))
        # mail servers that the suite installed in the same system (`make debian13`): they have port 995
        for unit in ("dovecot.service", "dovecot.socket", "opensmtpd.service", "postfix.service"):
            running.run(f"ln -sf /dev/null /etc/systemd/system/{unit}")
        yield running


@pytest.fixture(scope="module")
def booted(system):
    """Boot systemd in that system."""
    if not system.boot():
        pytest.skip("systemd does not run in namespaces of this machine")
    yield system
    system.halt()


# The tests are the steps of one administrator's work, in this order.
def test_installed(system):
    for user in ("_pop3d", "_popauth", "_popmda"):
        assert system.run(f"getent passwd {user}").stdout.endswith(":/nonexistent:/usr/sbin/nologin\n")
    assert system.run("stat -c '%U %a' /var/vmail").stdout == "root 711\n"
    assert os.path.islink(system.path("/etc/systemd/system/multi-user.target.wants/popkernel.service"))
    configuration = tomllib.loads(system.read("/etc/popkernel/popkernel.toml"))
    assert configuration == {"auth_table": "/etc/popkernel/auth", "user_table": "/etc/popkernel/users"}
    for path in (
        "/usr/share/man/man8/popkernel.8.gz",
        "/usr/share/bash-completion/completions/popkernel",
        "/usr/share/zsh/vendor-completions/_popkernel",
        "/usr/share/fish/vendor_completions.d/popkernel.fish",
        "/etc/fail2ban/filter.d/popkernel.conf",
    ):
        assert os.path.getsize(system.path(path)), path


def test_the_unit_is_sound_and_leaves_little_open(system):
    assert system.run("systemd-analyze verify popkernel.service").stdout == ""
    system.run(f"systemd-analyze security --offline=true --threshold=30 {UNIT}")


def test_served_without_systemd(system):
    """The unit's ExecStart= serves by itself, too."""
    said = system.run("cp -a /etc/popkernel /root/etc; sh /root/serve").stdout
    assert said.endswith("stopped\n")
    system.run("rm -r /etc/popkernel /var/vmail/*; mv /root/etc /etc/popkernel")


def test_not_started_without_an_authorization_table(booted):
    assert booted.run("systemctl show -P ConditionResult popkernel").stdout == "no\n"
    assert booted.run("systemctl is-failed popkernel", check=False).stdout == "inactive\n"


def test_served_by_systemd(booted):
    assert booted.run("sh /root/serve").stdout.endswith("stopped\n")


def test_the_unit_s_sandbox_lets_actors_be_as_they_are_without(booted):
    """Landlock and filters in those of the unit, uids, SCHED_BATCH, the listener's niceness."""
    booted.run("systemctl start popkernel")
    said = booted.run("popkernel status").stdout
    assert re.search(r"warm actors: 0 of about [1-9]", said), "the trial's memory could not be read"
    rows = booted.run("ps -eo cls=,ni=,user=,args= | grep 'popkernel: '").stdout
    assert rows.count("B ") == 5 and re.search(r"B +-15 _pop3d +popkernel: listener.0", rows), rows


def test_the_watchdog_restarts_a_service_whose_kernel_hangs(booted):
    booted.write("/etc/systemd/system/popkernel.service.d/test.conf", "[Service]\nWatchdogSec=2\n")
    booted.run(
        f"""
        systemctl daemon-reload
        systemctl restart popkernel
        sleep 3
        [ $(systemctl show -P NRestarts popkernel) = 0 ]
        kill -STOP $({KERNEL})
        until [ $(systemctl show -P NRestarts popkernel) = 1 ]; do sleep 0.2; done
        until systemctl -q is-active popkernel; do sleep 0.2; done
        rm /etc/systemd/system/popkernel.service.d/test.conf
        systemctl daemon-reload
        """,
        timeout=60,
    )


def test_mail_in_home_directories(booted):
    """It is hidden, which the log says with the mend, until the drop-in is there."""
    booted.run(
        """
        useradd -m zoe
        id=$(id -u zoe)
        echo secret | popkernel passwd -a /etc/popkernel/auth --stdin zoe
        echo "zoe $id:$id:/home/zoe/Maildir" >>/etc/popkernel/users
        install -d -o zoe -g zoe -m 0700 /home/zoe/Maildir
        systemctl restart popkernel
        until journalctl -u popkernel | grep -q 'ProtectHome=no'; do sleep 0.2; done
        mkdir -p /etc/systemd/system/popkernel.service.d
        cp /usr/share/doc/popkernel/examples/mail-in-home.conf /etc/systemd/system/popkernel.service.d/
        systemctl daemon-reload
        systemctl restart popkernel
        echo 'Subject: home' | popkernel deliver -u zoe
        curl -sS --cacert /etc/popkernel/test.pem --user zoe:secret pop3s://localhost/1 | grep 'Subject: home'
        """,
        timeout=60,
    )


def test_upgraded(booted):
    """A newer package restarts the service; configuration, tables and mail stay."""
    booted.run(
        """
        mkdir /root/newer
        dpkg-deb -R /root/popkernel.deb /root/newer
        sed -i 's/^Version: .*/&+1/' /root/newer/DEBIAN/control
        dpkg-deb -b /root/newer /root/newer.deb
        before=$(systemctl show -P MainPID popkernel)
        dpkg -i /root/newer.deb
        systemctl is-active popkernel
        [ $before != $(systemctl show -P MainPID popkernel) ]
        dpkg-query -W popkernel | grep '+1$'
        grep test.pem /etc/popkernel/popkernel.toml
        curl -sS --cacert /etc/popkernel/test.pem --user alice:secret pop3s://localhost/1 | grep 'The body.'
        """
    )


@pytest.mark.parametrize("how", ["remove", "purge"])
def test_removed(booted, how):
    """Neither mail nor tables go."""
    booted.run(f"apt-get -qq {how} -y popkernel")
    assert booted.run("systemctl is-active popkernel", check=False).stdout == "inactive\n"
    assert not booted.run("pgrep -f '[p]opkernel: '", check=False).stdout
    left = booted.run(
        "ls /etc/popkernel; find /var/vmail/alice /home/zoe/Maildir -type f | wc -l"
    ).stdout.split()
    assert {"auth", "users"} <= set(left) and int(left[-1]) >= 4  # two messages, two popcaches
    assert ("popkernel.toml" in left) == (how == "remove")
