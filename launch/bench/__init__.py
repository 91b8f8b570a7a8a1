"""`sidestage bench`: tokens a second of several ways to run one model, beside what is possible."""
