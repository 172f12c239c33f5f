"""Rows of questions, conversations and pairs of answers, whatever file, folder or hub they come from.

| module | what it does |
|---|---|
| `splits` | `train[:5%]` and the like; which rows are held out |
| `files` | JSON, JSON lines, Parquet, Arrow: rows with their places |
| `folders` | which files of a folder, a saved data set or a hub id are a split's |
| `preprocessing` | the user's file that changes rows |
| `images` | images of a row as paths |
| `turns` | what is said in a row |
| `table` | a section's rows, each made into what is trained on, or named |
"""
