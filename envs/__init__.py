"""What a task is and how it is played and graded; knows no model."""
