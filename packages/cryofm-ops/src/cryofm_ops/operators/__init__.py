"""Degradation operators A, one kind a file, and those made of others (`compose`, `add`, `stack`).

Imports `fourier`, `rotations` and the Protocols.
"""
