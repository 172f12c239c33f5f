"""Makes a file of pairs from captioned images, questions about images, and features of both (PairUni, section 3.2).

Images are clustered by k-means: in each cluster the image nearest the centroid that has a caption and a question becomes an
aligned pair with itself. The others are retrieved: a caption's image is paired with the question's image of the largest cosine
above a threshold, the most similar first, no image twice. What is made depends on the files and the seed alone, and not on the
order of their rows.
"""
