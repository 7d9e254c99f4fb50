"""The side of the clients: connections, the pipeline of middleware, and handlers that only compose."""
