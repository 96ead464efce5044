"""Everything between a task file and new weights."""
