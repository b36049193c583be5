"""Training jobs: a VQ-VAE and a PixelCNN prior over its codes (arXiv:1711.00937), and the systems it is compared to."""
