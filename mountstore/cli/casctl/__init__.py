"""casctl: the control file for people. See docs/casctl.md."""
