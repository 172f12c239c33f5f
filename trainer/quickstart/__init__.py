"""The quickstart's own world: rendered words, their captions, and the mistakes in them."""
