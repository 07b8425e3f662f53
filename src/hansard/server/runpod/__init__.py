"""RunPod on both sides: its API in front of this server (`routes`, `views`), and its workers behind it (`runner`)."""
