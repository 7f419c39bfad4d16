"""L2 books on integers, folded from the frames of the wire."""
