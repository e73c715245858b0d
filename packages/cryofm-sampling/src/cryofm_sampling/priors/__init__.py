"""What is asked of a prior by itself: its statistics, the likelihood of a map, tiles for large boxes, a training loss.

Imports `runs` and `samplers`.
"""
