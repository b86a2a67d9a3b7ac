"""Judges `livella.inspect` and `livella.repair` on networks, data and faults nobody tuned them to.

`python -m evaluation --seeds odd` draws trained networks, does to them what people do to their
statistics, asks the inspector through loaders as people have them, and compares what it says with
an oracle that shares no code with it. Even seeds are for development, odd ones for the note.
"""
