"""From what a caller sends to samples: `fetch` brings the file, `decode` makes it 16 kHz int16."""
