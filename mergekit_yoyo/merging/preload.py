"""What every worker has imported already: the server that workers are copied from loads this."""

import gc

gc.disable()  # imports make many objects that all stay: collecting costs a third of their time

import mergekit.merge  # noqa: E402, F401

import mergekit_yoyo.merging.worker  # noqa: E402, F401

gc.freeze()  # copies share what no collection touches
gc.enable()
