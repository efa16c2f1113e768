"""What the promises of docs/durability.md are tested with: power loss, kill -9, full and failing disks."""
