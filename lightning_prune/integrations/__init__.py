"""Other libraries that people train with, one in a file; each is imported only when it is used."""
