"""The dashboard (`panels`), the file that is made of it (`dashboard`), and a picture of it (`plot`)."""
