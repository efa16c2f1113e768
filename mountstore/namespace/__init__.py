"""Names, inodes, drafts and commits on the catalog; knows no FUSE."""
