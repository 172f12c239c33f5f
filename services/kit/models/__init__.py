"""What scorers with a network of their own share: reading weights and images, where the network runs, its features."""
