"""Patches for Immich's own source: which there are, whether they fit a source tree, put in and taken out.

patch.py                 one patch file, read
collection.py            those that come with this project, by Immich's version
git.py                   one file's part of a patch, put in or taken out by git
tree.py  state.py        a source tree's files; which version it is, and which patches are in it
transaction.py           files replaced all or none, whatever happens meanwhile
command.py  report.py    the `patches` command; what it says of a tree that it does not know
"""

from .patch import PatchError

__all__ = ["PatchError"]
