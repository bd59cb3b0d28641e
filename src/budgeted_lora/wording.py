"""What is wrong with a configuration, in one line."""

from pydantic import ValidationError


def describe(error: ValidationError) -> str:
    """A pydantic error as one line: key, value found, what was expected."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}")
        elif item["type"] == "missing":
            lines.append(f"{key} is missing")
        elif item["type"] == "value_error":
            lines.append(item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key} is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}")
    return "; ".join(dict.fromkeys(lines))
