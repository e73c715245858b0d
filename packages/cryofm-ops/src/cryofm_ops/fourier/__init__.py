"""The half grid of the orthonormal FFT: radial tables, directions, kernels, interpolation.

Imports `errors` alone; everything else in this package may import it.
"""
