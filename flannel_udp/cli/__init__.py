"""The command line: flags, commands, and what people see."""
