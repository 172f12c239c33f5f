"""The rows of a run, read as columns and thinned as they are read: what curves are made of, in bounded memory."""
