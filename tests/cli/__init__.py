"""The programs as users run them, and what each is made of."""
