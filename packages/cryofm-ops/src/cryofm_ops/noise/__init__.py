"""Noise models, one kind a file, and how their power is estimated: `from_half_maps`, cones, poses or images.

Imports `fourier`, `rotations`, `operators` and the Protocols.
"""
