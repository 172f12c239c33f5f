"""The policies. `registry` knows them all; a family's folder holds what its policies share and one module for each."""
