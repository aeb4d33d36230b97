"""What labelled rows teach about a judge: when it is right, and from which confidence on. Pure."""
