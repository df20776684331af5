"""A small shop that shows what an application sees behind a fleet."""

from __future__ import annotations

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from .views import views


def create_app() -> Flask:
    """Make the application; its secrets come from the environment."""
    app = Flask(__name__)
    app.config.from_prefixed_env("SHOP")
    app.register_blueprint(views)
    # One proxy: nginx on this host. It has already replaced the balancer's address by the client's.
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)  # type: ignore[method-assign]
    return app
