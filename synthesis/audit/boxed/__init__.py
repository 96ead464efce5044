"""What runs inside a box beside foreign code: the standard library, and pydantic for two formats."""
