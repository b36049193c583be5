"""Formats between HTTP and Python. In: bytes and headers. Out: values that are checked against their format alone."""
