"""mountstore: a content-addressed, versioned filesystem on FUSE."""

__version__ = "0.1.0"
