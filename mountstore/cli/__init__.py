"""The command line programs: arguments and messages, no logic."""
