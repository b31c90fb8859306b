"""A merge that looks like the models that went in: `finish` and `check`."""
