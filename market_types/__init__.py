"""Records, enums, venues, instruments and exact numbers: the vocabulary every room speaks."""
