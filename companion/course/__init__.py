"""What only the course needs: sessions, checks and explorers, and the tools that make and run notebooks."""
