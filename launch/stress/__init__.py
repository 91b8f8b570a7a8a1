"""`sidestage stress`: the real processes under synthetic load and injected faults."""
