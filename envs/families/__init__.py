"""One module a task family that is more than tools over a database: how it sets up, plays and grades."""
