"""The process boundary: `host` stands in the light parent, `child` holds torch and the models, `wire` is between."""
