"""An old name of `sublora.carriers.rows_file`."""

from sublora.carriers.rows_file import read_rows as load_rows

__all__ = ["load_rows"]
