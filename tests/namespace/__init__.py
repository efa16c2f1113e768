"""The namespace with real blobs and a real catalog, in this process."""
