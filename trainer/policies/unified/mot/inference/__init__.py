"""How a Mixture-of-Transformers goes on from texts and images: it writes, it draws, and it looks at what it has drawn."""
