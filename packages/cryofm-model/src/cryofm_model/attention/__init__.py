"""Neighbourhood attention in three dimensions, and the backends that compute it.

Imports `errors` alone.
"""

from cryofm_model.attention.neighborhood import AttentionBackend, attention_backend, neighborhood_attention_3d

__all__ = ["AttentionBackend", "attention_backend", "neighborhood_attention_3d"]
