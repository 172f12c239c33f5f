"""NEO's rows: conversations about images, several images, frames of a video, or none.

| module | what it does |
|---|---|
| `conversations` | a row as a sequence |
| `frames` | the images that a video is read as |
| `registry` | data sets by name, and which of them a run uses |
"""
