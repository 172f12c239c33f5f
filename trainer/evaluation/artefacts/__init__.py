"""What a held-out sample is made of, kept as files: images, texts, or both."""
