"""What gunicorn is given: `wsgi:app`."""

from shop import create_app

app = create_app()
