"""Pictures: the bytes of a file to uint8 (H,W,C) and back. In: PNG, JPEG, WebP, BMP. Out: what a model takes.

Training reads pictures by `pixels` too, so that a model is trained on the pixels that it is served.
"""
