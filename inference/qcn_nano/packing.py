"""Best-fit packing of whole documents into training sequences (arXiv 2404.10830).

No document is cut, none is lost, none appears twice. Documents are taken from the longest to the
shortest and each goes where the least room is left that still holds it.
"""

from bisect import bisect_left, insort


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Distribute documents over bins.

    Args:
        lengths: tokens of each document.
        capacity: tokens of a bin.

    Returns:
        for each bin the indices of its documents.

    Raises:
        ValueError: a document is longer than a bin.
    """
    too_long = [index for index, length in enumerate(lengths) if length > capacity]
    if too_long:
        raise ValueError(
            f"document {too_long[0]} has {lengths[too_long[0]]} tokens, a sequence holds {capacity}"
        )
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # room left -> bins with exactly that room
    rooms: list[int] = []  # the keys of open_bins, sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(rooms, lengths[index])
        if place == len(rooms):
            bins.append([])
            target, room = len(bins) - 1, capacity
        else:
            room = rooms[place]
            target = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[place]
        bins[target].append(index)
        left = room - lengths[index]
        if left not in open_bins:
            open_bins[left] = []
            insort(rooms, left)
        open_bins[left].append(target)
    return bins
