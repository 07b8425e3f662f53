"""OpenAI's audio endpoints: what is asked for (`form`, `models`), and what comes back (`answers`)."""
