"""Reading a pickled request that brings a row of metadata for each image (`meta_datas`) in place of prompts."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.errors import ApiError
from services.kit.legacy.items import check_column
from services.kit.legacy.plain_pickle import Plain
from services.kit.rows import Rows, ServesRows

ROWS = "meta_datas"


def read_rows(tree: Mapping[str, Plain], count: int, serves: ServesRows) -> Rows:
    """The rows of a request of `count` images. Raises ApiError 422."""
    column = check_column(ROWS, tree[ROWS], count)
    for number, row in enumerate(column):
        if not isinstance(row, dict):
            raise ApiError(422, f"a row is a dict, not {type(row).__name__}", field=f"{ROWS}.{number}")
    rows = Rows(column, {name: value for name, value in tree.items() if name not in ("images", ROWS)})
    try:
        serves.check(rows)
    except ValueError as error:
        raise ApiError(422, str(error), field=ROWS) from error
    return rows


def prompts_of(rows: Rows) -> list[object]:
    """The rows' prompts; "" where a row has none."""
    return [row.get("prompt", "") for row in rows.rows]
