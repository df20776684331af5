"""A small shop window: shows which host, process and release answered, and as whom it sees its client."""

from __future__ import annotations

import os

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from shop.views import pages


def create_app() -> Flask:
    """The WSGI application, set up from the environment."""
    app = Flask(__name__)
    app.config["SECRET_KEY"] = os.environ.get("SECRET_KEY")
    app.register_blueprint(pages)
    # One step, behind one nginx or two: nginx on this host finds out who the client is and sends us one address only.
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)  # type: ignore[method-assign]
    return app
