"""Pack the links of popkernel/ as links: setuptools would pack what they lead to a second time. All else is in pyproject.toml."""

import os

from setuptools import setup
from setuptools.command.sdist import sdist


class LinksStayLinks(sdist):
    """The command that makes the source distribution."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Make the tree that is packed: each file once, and the links."""
        links = [entry.path for entry in os.scandir("popkernel") if entry.is_symlink()]
        linked = tuple(f"{link}/" for link in links)
        super().make_release_tree(base_dir, [path for path in files if not os.path.normpath(path).startswith(linked)])
        for link in links:
            os.symlink(os.readlink(link), os.path.join(base_dir, link))


setup(cmdclass={"sdist": LinksStayLinks})
