"""YOYO-Fusion for mergekit: robust merging of fine-tunes, from the YAML to the published model.

Importing this package is cheap (no torch, no mergekit): it installs the hook that makes mergekit
know the method, and names from the algorithm are loaded at first use.
"""

__version__ = "0.1.0"
