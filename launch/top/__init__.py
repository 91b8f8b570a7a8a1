"""`sidestage top`: a live view of a running loader and its clients, in a terminal and as a web page."""
