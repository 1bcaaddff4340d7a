"""Programs around the library: the demo, and makers of images to try it with."""
