"""`sidestage doctor`: what sidestage needs of this machine, looked at one by one."""
