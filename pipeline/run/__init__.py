"""The driver of `render`, `import` and `clip`."""
