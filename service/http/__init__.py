"""What happens to every request. In: bytes of a connection. Out: bytes; between them the middleware and one route.

`protocol` is uvicorn's HTTP protocol with our bounds around it, `middleware` what stands between it and the routes.
"""
