"""Search over what is embedded: the index, questions to it, pictures, and a web page."""
