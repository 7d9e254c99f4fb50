# The gateway, its locked dependencies, uvloop and the library for Redis; no compiler, no tools, no root.
#
#   docker build -t sse-gateway .
#   docker run -p 8080:8080 sse-gateway                                              the built-in stand-in for an LLM
#   docker run -p 8080:8080 -v ./config.yaml:/etc/gateway/config.yaml:ro sse-gateway
#
# `docker stop` waits 10 s by default; give it longer than `server.drain`: docker stop --time 40.

FROM node:22-slim AS page
WORKDIR /page
COPY pages/chat/lib ./
RUN npm ci && npm run build

FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /opt/gateway
COPY requirements-run.lock requirements-build.lock ./
RUN /opt/gateway/bin/pip install --no-cache-dir --require-hashes -r requirements-run.lock \
    && pip install --no-cache-dir --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway ./gateway
COPY client ./client
COPY pages ./pages
COPY --from=page /page/markdown.js /page/licenses.txt ./pages/chat/lib/
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/gateway/bin/pip install --no-cache-dir --no-deps dist/*.whl

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin gateway
COPY --from=build /opt/gateway /opt/gateway
COPY config.yaml /etc/gateway/config.yaml
# The shipped config reads these, and asks nobody for a key: mount one of your own before others can connect. The admin
# port never asks; publish it to your own network only.
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_LISTEN=0.0.0.0:8080 \
    GATEWAY_ADMIN=0.0.0.0:9090 \
    GATEWAY_LOG_FORMAT=json
WORKDIR /etc/gateway
USER gateway
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:9090/livez', timeout=2)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
