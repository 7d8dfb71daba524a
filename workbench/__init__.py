"""What a listener or a researcher does with speech codecs; built on `taae`, which knows nothing of it."""
