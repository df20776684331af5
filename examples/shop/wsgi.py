"""What the server is told to serve: `wsgi:app`."""

from shop import create_app

app = create_app()
