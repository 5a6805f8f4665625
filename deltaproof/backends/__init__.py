"""The backend protocol, and how a backend is found."""
