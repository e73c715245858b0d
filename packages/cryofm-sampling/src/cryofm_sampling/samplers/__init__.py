"""The algorithms, one a file: each brings a velocity field and a likelihood together, or draws from the prior alone.

Imports `runs`, never `priors` or what stands above.
"""
