"""Everything from a list of items to a finished shard. Imports neither torch nor bpy."""
