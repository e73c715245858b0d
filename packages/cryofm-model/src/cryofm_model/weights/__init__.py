"""Files of weights: ours, the published ones, and the priors that ship, which lie beside this file.

Imports `networks` and `prior`.
"""
