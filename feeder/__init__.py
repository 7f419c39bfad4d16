"""The daemon: venue WebSockets in, rings, tape and multicast out."""
