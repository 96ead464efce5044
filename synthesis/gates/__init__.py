"""One gate a module: what each proves of a task before it ships."""
