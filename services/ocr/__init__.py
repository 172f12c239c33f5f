"""OCR reward: how much of the text a prompt asks for can be read in the image."""
