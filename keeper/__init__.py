"""The keeper: follows every tape of the host, archives them on disk, and finds frames by number."""
