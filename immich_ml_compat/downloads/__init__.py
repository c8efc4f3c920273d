"""Models that are not on disk: fetched from a hub, checked, and put in place whole or not at all.

sources.toml  sources.py       which hub has which model, under which address and sum
huggingface.py  modelscope.py  the hubs, over hub.py and transfer.py (resumed HTTP)
locking.py  presence.py        one process at a time, as far as that can be; who works on what, where it cannot
staging.py                     where files lie until they are complete and checked
manifest.py  installing.py     what was downloaded; how it gets into a model's folder
converting.py                  models that are made here from an official checkpoint
mending.py  origin.py          what is wrong with a folder of such a model, and which checkpoint may mend it
downloader.py                  all of it together
checking.py  batch_axis.py     sums of what is on disk, for `models verify`
"""

from .downloader import Downloader

__all__ = ["Downloader"]
