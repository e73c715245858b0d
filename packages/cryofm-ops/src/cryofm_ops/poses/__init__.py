"""Unknown poses: losses, search, sampling and evidence, and the likelihoods of images that have them.

Imports everything below: `fourier`, `rotations`, `operators`, `likelihoods`. Nothing imports it but the package itself.
"""
