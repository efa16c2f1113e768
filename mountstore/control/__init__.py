"""The control file's language, its commands, and the jobs that run; knows no FUSE. See docs/control.md."""
