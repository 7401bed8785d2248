"""The page at ``/`` and the API's documentation at ``/docs``, both without a request to anybody else."""

from serving.web.pages import page_router

__all__ = ["page_router"]
