"""Every GPU line of out=native in one call of a few minutes on one H100 or H200; see __main__.py."""
