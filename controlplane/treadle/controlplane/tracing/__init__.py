"""The trace of a run, projected from its history: events in, finished spans out, exported at least once with equal bytes.

    history -> `spans.project` (pure) -> SpanData -> `exporter.SpanExporter` (OTLP) -> the cursor moves (`projector`)

Ids are hashed from (namespace, run id, incarnation, path), so nobody has to ask anybody for the parent of a span, and a span
that is exported twice is the same span. Nothing in a span comes from anywhere but the events.
"""
