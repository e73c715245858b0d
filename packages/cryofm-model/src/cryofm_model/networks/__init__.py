"""The networks: the paper's hourglass transformer, a U-Net, what they are built of and what they cost.

Imports `attention` alone.
"""
