"""GenEval: does an image show the objects, counts, colours and positions that its prompt asks for?"""
