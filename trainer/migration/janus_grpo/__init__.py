"""Translates command lines of PairUni and of T2I-R1, which train Janus-Pro by one program's flags (open-r1's family)."""
