"""An item in, a scene or a reason out."""
