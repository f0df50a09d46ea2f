"""Problems told for people: what was asked, how far it got, what happened, and what to do."""
