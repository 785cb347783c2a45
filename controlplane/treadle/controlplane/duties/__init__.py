"""Background duties of a replica: one file each, each with `async def run(self)`, all in one task group."""
