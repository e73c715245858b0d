"""Training crops: maps read, simulated, curated, mixed, made to look measured, and turned.

Imports `prior` (for its units), never `networks` or `train`. What reads files needs the extra ``[train]``.
"""

from cryofm_model.data.map_set import MapSet

__all__ = ["MapSet"]
