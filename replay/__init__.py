"""Stand-ins that speak a venue's own WebSocket and REST from a recording, with faults on demand."""
