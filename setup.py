"""Pack the manual page and the shells' completions, and the symbolic links of popkernel/ as links.

setuptools would pack the links' targets a second time. Everything else is in pyproject.toml.
"""

import os
import subprocess
import sys
import tempfile
from distutils.command.install_data import install_data  # setuptools' own: a build imports that first

from setuptools import setup
from setuptools.command.sdist import sdist

COMPLETIONS = {
    "bash": "share/bash-completion/completions/popkernel",
    "zsh": "share/zsh/site-functions/_popkernel",
    "fish": "share/fish/vendor_completions.d/popkernel.fish",
}


class LinksStayLinks(sdist):
    """The command that makes the source distribution."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Make the tree to pack: each file once, and the links."""
        links = [entry.path for entry in os.scandir("popkernel") if entry.is_symlink()]
        linked = tuple(f"{link}/" for link in links)
        super().make_release_tree(
            base_dir, [path for path in files if not os.path.normpath(path).startswith(linked)]
        )
        for link in links:
            os.symlink(os.readlink(link), os.path.join(base_dir, link))


class WithCompletions(install_data):
    """The command that puts data files into a wheel: makes the completions from the commands' parsers."""

    def run(self) -> None:
        """Make the scripts by this tree's own `popkernel completion`, and pack all data files."""
        with tempfile.TemporaryDirectory() as place:
            for shell, path in COMPLETIONS.items():
                made = os.path.join(place, os.path.basename(path))
                with open(made, "wb") as file:
                    command = [sys.executable, "-m", "popkernel", "completion", shell]
                    subprocess.run(command, stdout=file, check=True)
                self.data_files.append((os.path.dirname(path), [made]))
            super().run()


setup(
    cmdclass={"install_data": WithCompletions, "sdist": LinksStayLinks},
    data_files=[("share/man/man8", ["docs/popkernel.8"])],
)
