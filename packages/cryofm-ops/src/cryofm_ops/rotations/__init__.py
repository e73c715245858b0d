"""Rotations: conversions between their forms, distances, and equal-volume grids over all of them.

Imports `errors` alone.
"""
