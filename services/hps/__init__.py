"""Human preference rewards: HPSv2 and HPSv2.1, the cosine between a prompt and an image in a fine-tuned CLIP."""
