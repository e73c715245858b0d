"""The windows of neighbourhood attention along one axis, and the segments into which its queries are cut.

The border rule is NATTEN's: among n tokens, query i attends to the `kernel` keys from
start = clamp(i − kernel // 2, 0, n − kernel) on, so a window that would leave the box is shifted inside.
"""

import itertools

import attrs

__all__ = ["Segment", "segments", "starts"]


@attrs.frozen
class Segment:
    """Consecutive queries of an axis, and the keys that their windows cover together.

    Attributes:
        queries: their indices.
        keys: from the first key of the first window to the last key of the last.
        offsets: where in `keys` the window of each query starts.
    """

    queries: slice
    keys: slice
    offsets: tuple[int, ...]


def starts(n: int, kernel: int) -> list[int]:
    """First key of the window of each of n queries.

    >>> starts(6, 3)
    [0, 0, 1, 2, 3, 3]
    """
    return [min(max(i - kernel // 2, 0), n - kernel) for i in range(n)]


def segments(n: int, kernel: int, size: int) -> list[Segment]:
    """Cut an axis of n queries into segments of at most `size`, but for the two ends.

    The queries at an end share one window, so each end is a segment of its own, in which no key is masked.
    Those in between are cut evenly: m of them see m + kernel − 1 keys, each only `kernel` of these.

    >>> [segment.keys for segment in segments(16, 7, 4)]
    [slice(0, 7, None), slice(1, 11, None), slice(5, 15, None), slice(9, 16, None)]
    """
    first = starts(n, kernel)
    cuts = {0, n}
    if n > kernel:
        low, high = first.count(0), n - first.count(n - kernel)
        pieces = max(1, -(-(high - low) // size))
        cuts |= {low + (high - low) * i // pieces for i in range(pieces + 1)}
    return [
        Segment(slice(a, b), slice(first[a], first[b - 1] + kernel), tuple(s - first[a] for s in first[a:b]))
        for a, b in itertools.pairwise(sorted(cuts))
    ]
