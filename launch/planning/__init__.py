"""`sidestage plan`: will it fit and how fast, from a model's config alone, before anything is loaded."""
