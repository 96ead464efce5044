"""What people see: the command line, the doctor, the demo, reports and the trajectory viewer."""
