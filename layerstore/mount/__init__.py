"""Ways to show an image as a filesystem."""
