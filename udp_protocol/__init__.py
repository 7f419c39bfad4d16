"""The wire: codecs, tape, sequencing and multicast. SPEC.md beside this file is the byte table."""
