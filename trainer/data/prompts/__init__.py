"""Prompt files: our own, and those that users of other trainers have. What is wrong is said with its line and a remedy.

| format | what |
|---|---|
| txt | a prompt a line; blank lines are skipped |
| txt_folder | a folder of such files; where names end in _train, _val or _test, those of the split |
| jsonl | our own: an object a line with `prompt`, and if wanted the other fields of `lines.FIELDS`; closed |
| rows | others' jsonl: the text, the images of an edit and a negative prompt by the names in `fields`; the rest is metadata |
| json | a list of texts or of such rows, or an object of them by name |
| csv | a table with a header, its delimiter found; columns as fields of a row; UniGenBench's `index` and `sub_dims` |
| parquet | a table likewise; needs pyarrow |
| flow_grpo_text | a folder with `train.txt` and `test.txt`; OCR targets are the texts in quotes |
| flow_grpo_metadata | a folder with `train_metadata.jsonl` and `test_metadata.jsonl`, whose lines are `rows` |
| python | FILE.py:NAME or module:NAME: a function of the user's that gives texts or rows as of jsonl; closed |

`auto` goes by the folder's content, the file's ending, its header or its first row. A .jsonl whose first object has another
project's names is `rows`; any other is our own, so that a misspelt field of ours is never taken for metadata. All files are
UTF-8; a byte-order mark, CRLF and blank lines do no harm. The path of a prompt file counts from the working directory, those of
images in it from the file's folder, then from `images` in it, or from `image_dir`.
"""

from trainer.data.prompts.checks import (
    MAX_ID_LENGTH,
    MAX_METADATA_DEPTH,
    MAX_PROMPT_LENGTH,
    MAX_SOURCE_IMAGES,
    DataError,
)
from trainer.data.prompts.file import PromptFile, is_own, read_prompt_file
from trainer.data.prompts.lines import Split

__all__ = [
    "MAX_ID_LENGTH",
    "MAX_METADATA_DEPTH",
    "MAX_PROMPT_LENGTH",
    "MAX_SOURCE_IMAGES",
    "DataError",
    "PromptFile",
    "Split",
    "is_own",
    "read_prompt_file",
]
