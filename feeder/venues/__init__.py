"""One file a venue: what its messages mean. No socket, no clock, no await, no logger."""
