"""Pairs of a question about an image and a prompt to draw: files of them (`file`), and how they are built (`building`).

A row holds `similarity` and two sides, `generate_ann` and `understand_ann`, each with `image_path`, `prompt`, `question`,
`answer` and `tag` (PairUni, section 3.2). Training asks the question of one side and draws the prompt of the other.
"""
