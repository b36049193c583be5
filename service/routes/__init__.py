"""The routes. In: a request within its limits. Out: an answer. Each decodes, calls, encodes.

`encoding`, `decoding` and `generation` are the three to read; `service` is what all of them work with.
"""
