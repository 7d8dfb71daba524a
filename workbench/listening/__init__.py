"""Listening tests: MUSHRA, ABX, AB and ACR with codecs rendered on demand (ITU-R BS.1534-3, BS.1116-3, P.800).

study      what is asked, of whom, about which systems: TOML or YAML over a preset
render     stimuli: codecs at bitrates, anchors, level matching, cached by content hash
design     who hears what in which order and slot
store      one SQLite file that loses nothing
stats      post-screening, intervals, tests, planning
simulate   listeners with a known answer, marked SIMULATED
"""
