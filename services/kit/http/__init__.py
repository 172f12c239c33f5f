"""From bytes to items and back: the routes, what a request may look like, and the pages a person can open."""
