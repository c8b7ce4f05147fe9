"""The leaderboard: takes submissions in, verifies them itself, ranks and shows them."""
