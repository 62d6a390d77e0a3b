"""Videos: from a YouTube id to a cut of the video."""
