"""Workers: an item in; a scene, or the reason why there is none, out."""
