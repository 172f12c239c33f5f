"""UniReason's rows: images from texts, edits, both with reasoning, and drafts that are refined.

| module | what it does |
|---|---|
| `plans` | each kind of row as a sequence |
| `trace` | the trace of a refinement: suggestions and images in turns |
| `instructions` | the fixed sentences before rows with reasoning |
| `registry` | dataset_info.py, or a YAML file of its two tables |
| `grouping` | the YAML file that groups data sets and weighs them |
"""
