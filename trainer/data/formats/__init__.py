"""File formats of packed training: each gives the rows of a file as plans (`trainer.data.sequences`).

| module | what it does |
|---|---|
| `unireason` | the six kinds of rows of UniReason, its table of groups and its registry |
| `neo` | conversations with images, as NEO's, and its registry |
| `fields` | texts and images of a row, checked |
| `tables` | constants of a Python file, which is read and never run |
| `groups` | what a recipe's section `packed` draws from |
"""
