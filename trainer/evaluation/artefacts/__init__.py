"""What a held-out sample is made of, kept as files, measured and shown: images, texts, and the two as a whole."""
