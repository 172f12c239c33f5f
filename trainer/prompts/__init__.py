"""Prompt files: our own, and those that users of other trainers have. What is wrong is said with its line and a remedy.

| format | what |
|---|---|
| txt | a prompt a line; blank lines are skipped |
| jsonl | our own: an object a line with `prompt`, and if wanted `id`, `targets`, `metadata`, `source_images`; closed |
| rows | others' jsonl (DeepGen-RL, flow_grpo): `prompt` or `caption`, `image` if it is an edit; the rest is metadata |
| csv | a column `prompt`, `prompt_en`, `prompt_zh` or `caption`; UniGenBench's `index` and `sub_dims` are understood |
| parquet | a column `prompt` or `caption`, the rest is metadata; needs pyarrow |
| flow_grpo_text | a folder with `train.txt` and `test.txt`; OCR targets are the quoted texts, those in straight double quotes first |
| flow_grpo_metadata | a folder with `train_metadata.jsonl` and `test_metadata.jsonl`, whose lines are `rows` |

`auto` goes by the folder's content or the file's ending. A .jsonl whose first object has `caption`, `key` or `image`, or
`tag` and `include` as GenEval's have, is `rows`; any other is our own, so that a misspelt field of ours is never taken
for metadata. All files are UTF-8; a byte-order mark, CRLF and blank lines do no harm. The path of a prompt file counts from
the working directory, those of images in it from the file's folder.
"""

from trainer.prompts.checks import (
    MAX_ID_LENGTH,
    MAX_METADATA_DEPTH,
    MAX_PROMPT_LENGTH,
    MAX_SOURCE_IMAGES,
    DataError,
)
from trainer.prompts.file import PromptFile, Split, is_own, read_prompt_file

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
