"""What `make docs` needs in addition to mkdocs: see `mkdocs.yml`."""
