"""What every worker has imported already: the server that workers are copied from loads this."""

import gc

from mergekit_yoyo.merging.importing import import_mergekit

import_mergekit()

import mergekit_yoyo.merging.worker  # noqa: E402, F401

gc.freeze()  # copies share what no collection touches
