"""What every worker has imported already: the server that workers are copied from loads this."""

import gc
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is told once, by the command

from mergekit_yoyo.merging.importing import import_mergekit  # noqa: E402

import_mergekit()

import mergekit_yoyo.merging.worker  # noqa: E402, F401

gc.freeze()  # copies share what no collection touches
