"""The bench of faults: what the wire promises, held against loss, silence, kills and strangers."""
