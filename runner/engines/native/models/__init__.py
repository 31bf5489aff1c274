"""Model families, one file each, found by the `model_type` of config.json; nothing is registered here."""
