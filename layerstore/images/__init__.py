"""What people do with images: load, save, import, list, inspect, name, remove. One module a verb, or a family."""
