"""Operator + noise + observation = likelihood: diagonal in Fourier space, linear, and in a prior's units.

Imports `fourier`, `operators` and the Protocols.
"""
