"""`sidestage chat`: a conversation in the terminal, or lines in and answers out."""
