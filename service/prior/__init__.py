"""What the prior is for. In: labels, seeds, codes. Out: new codes, the bits of given ones, and codes that cost fewer.

`generator` opens it; `scheduler` mixes the samples of all callers, `sampling` and, for few, `diagonal` draw their rows.
"""
