"""Tables as Markdown."""

__all__ = ["markdown"]


def markdown(rows, columns):
    """Rows (dicts) as a Markdown table; ``columns`` maps a heading to a function of a row."""
    lines = [columns, ["---"] * len(columns), *([str(get(row)) for get in columns.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
