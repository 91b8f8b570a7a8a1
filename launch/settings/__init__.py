"""Where settings come from: a flag, else SIDESTAGE_*, else sidestage.toml, else the option's default."""
