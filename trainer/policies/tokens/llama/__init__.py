"""Language models whose layers are those of Llama, computed by hand: answers drawn fast, and replayed with each prompt read once.

`layout` finds the layers in a model of transformers and says whether they fit, `inputs` takes what the model itself makes of
prompts and images, `forward` runs the layers over it, `decode` draws, `replay` gives logits with gradient.
"""
