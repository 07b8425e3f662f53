"""Who said which word: `assign` gives words to turns."""
