"""What is trained, and nothing of how. In: pictures float32 (B,C,H,W) in [0,1]. Out: pictures, codes (B,h,w), logits.

Read `quantizers` first, then `autoencoders`, which puts one between the two networks of `networks`, and `prior`, which
predicts its codes; `exactness` proves that the prior computes in integers.
"""
