import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import { join } from 'node:path'
import tls from 'node:tls'
import t, { type Test } from 'tap'
import { defaultHeaders } from '../plugins/http/headers.ts'
import { createTestDatabase, eventually, password, startServer, temporaryFolder, testEnvironment } from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'
import {
  ask,
  complaints,
  exchange,
  makeCertificate,
  openssl,
  program,
  type Question,
  registration,
  startTraefik
} from './traefik.ts'

// rehearsal: certificates by a real ACME server

/*
 * Traefik with HTTPS in front of the real product, and certificates of an ACME server. Clients are told apart by their
 * loopback address: 127.0.0.1 is the proxy's.
 */

const pebble = findProgram('pebble')
const dnsServer = findProgram('pebble-challtestsrv')

t.test('HTTPS for a domain of one\u2019s own', { skip: program.skip || openssl.skip }, async (t) => {
  const certificates = temporaryFolder(t)
  const ca = makeCertificate(certificates, 'aggios.test')
  const database = await createTestDatabase(t)
  const backend = await startServer(
    t,
    testEnvironment(database, {
      NODE_ENV: 'production',
      BASE_DOMAIN: 'aggios.test',
      TRUST_PROXY: '127.0.0.1',
      JWT_SECRET: randomBytes(32).toString('hex'),
      PASSWORD_PEPPER: randomBytes(32).toString('hex')
    })
  )
  const traefik = await startTraefik(t, {
    BACKEND_URLS: `http://127.0.0.1:${backend.port}`,
    BASE_DOMAIN: 'aggios.test',
    TLS_FILES: `${certificates}/server.crt,${certificates}/server.key`
  })
  const secure = traefik.port('websecure')

  /** Sends a request as a browser does: the name selects the certificate, which must verify. */
  const askSecurely = (host: string, path: string, question: Question = {}) =>
    exchange(
      https.request as typeof http.request,
      {
        host,
        servername: host,
        port: secure,
        path,
        ca,
        agent: false,
        lookup: (_host, { all }, done) =>
          all ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4)
      },
      question
    )

  const registered = await askSecurely('api.aggios.test', '/api/v1/auth/register', {
    method: 'POST',
    body: registration('acme')
  })
  t.equal(registered.status, 201)
  const headers = { authorization: `Bearer ${registered.json().access_token}` }

  t.test('agencies and the general host answer under a certificate that verifies', async (t) => {
    t.match((await askSecurely('acme.aggios.test', '/api/v1/tenant', { headers })).json(), { slug: 'acme' })
    t.equal((await askSecurely('aggios.test', '/api/users/me', { headers })).status, 200)
    const nobody = await askSecurely('nobody.aggios.test', '/api/v1/tenant', { headers })
    t.match(nobody.json(), { status: 404, code: 'tenant_not_found' })
  })

  t.test('other names get 421 from the backend, and no handshake', async (t) => {
    await t.rejects(askSecurely('evil.example', '/api/v1/tenant'), { message: /unrecognized name/ })
    const other = await askSecurely('aggios.test', '/api/v1/tenant', { host: 'evil.example', headers })
    t.match(other.json(), { status: 421, code: 'unknown_host' })
  })

  t.test('the dashboard is nowhere', async (t) => {
    for (const host of ['traefik.localhost', 'traefik.aggios.test']) {
      for (const path of ['/dashboard/', '/api/rawdata']) {
        const overHttp = await ask(traefik.port('local'), path, { host })
        t.match(overHttp.headers, { 'content-type': /^application\/problem\+json/ }, `${host}${path}`)
        const overTls = await askSecurely('aggios.test', path, { host })
        t.match(overTls.headers, { 'content-type': /^application\/problem\+json/ }, `${host}${path}`)
      }
    }
  })

  t.test('plain HTTP only sends people to HTTPS', async (t) => {
    const get = await ask(traefik.port('web'), '/api/health?x=1', { host: 'acme.aggios.test' })
    t.equal(get.status, 301)
    t.equal(get.headers.location, `https://acme.aggios.test:${secure}/api/health?x=1`)
    const post = await ask(traefik.port('web'), '/api/auth/login', {
      host: 'acme.aggios.test',
      method: 'POST',
      body: { email: 'owner@acme.example', password }
    })
    t.equal(post.status, 308)
    t.equal(post.headers.location, `https://acme.aggios.test:${secure}/api/auth/login`)
  })

  t.test('nothing is served in plain text on the port of HTTPS', async (t) => {
    const plain = await ask(secure, '/api/v1/tenant', { host: 'acme.aggios.test', headers })
    t.notMatch(plain.headers, { 'content-type': /json/ })
    t.ok(plain.status >= 400, String(plain.status))
  })

  t.test('TLS begins at 1.2, and has ciphers that authenticate and forget', async (t) => {
    const handshake = async (version: tls.SecureVersion, ciphers = 'DEFAULT') => {
      const socket = tls.connect({
        host: '127.0.0.1',
        port: secure,
        servername: 'acme.aggios.test',
        ca,
        minVersion: version,
        maxVersion: version,
        // otherwise the client would refuse first
        ciphers: `${ciphers}@SECLEVEL=0`
      })
      try {
        await once(socket, 'secureConnect')
        return socket.getProtocol()
      } finally {
        socket.destroy()
      }
    }
    await t.rejects(handshake('TLSv1'), { code: 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION' })
    await t.rejects(handshake('TLSv1.1'), { code: 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION' })
    t.equal(await handshake('TLSv1.2'), 'TLSv1.2')
    t.equal(await handshake('TLSv1.3'), 'TLSv1.3')
    t.equal(await handshake('TLSv1.2', 'ECDHE-ECDSA-AES128-GCM-SHA256'), 'TLSv1.2')
    for (const weak of ['ECDHE-ECDSA-AES128-SHA', 'ECDHE-ECDSA-AES128-SHA256', 'AES128-GCM-SHA256']) {
      await t.rejects(handshake('TLSv1.2', weak), { code: 'ERR_SSL_SSL/TLS_ALERT_HANDSHAKE_FAILURE' }, weak)
    }
  })

  t.test('Traefik has nothing to complain about', async (t) => {
    t.strictSame(complaints(traefik), [])
  })

  t.test('an answer that Traefik makes itself says that there is nothing but TLS here', async (t) => {
    backend.child.kill('SIGKILL')
    await backend.exited
    const failed = await askSecurely('acme.aggios.test', '/api/v1/tenant')
    t.ok(failed.status === 502 || failed.status === 503, String(failed.status))
    t.match(failed.headers, { 'strict-transport-security': defaultHeaders['strict-transport-security'] })
  })
})

t.test(
  'one certificate for the domain and every agency comes by ACME and DNS',
  {
    skip: program.skip || openssl.skip || pebble.skip || dnsServer.skip
  },
  async (t) => {
    const authority = await startAuthority(t)
    const traefik = await startTraefik(
      t,
      {
        // nobody there: certificates come without
        BACKEND_URLS: `http://127.0.0.1:${await freePort()}`,
        BASE_DOMAIN: 'aggios.test',
        HTTPREQ_ENDPOINT: authority.dnsProvider
      },
      ({ certificatesResolvers: { letsencrypt } }) => {
        const { acme } = letsencrypt
        t.match(acme, { keyType: 'EC256', dnsChallenge: { provider: 'cloudflare' } })
        // another authority and DNS provider; the wait until the record is visible everywhere is switched off
        const dnsChallenge = {
          provider: 'httpreq',
          propagation: { disableChecks: true },
          resolvers: [authority.resolver]
        }
        Object.assign(acme, { caServer: authority.directory, caCertificates: [authority.caFile], dnsChallenge })
      }
    )
    const certificateOf = async (servername: string) => {
      const socket = tls.connect({
        host: '127.0.0.1',
        port: traefik.port('websecure'),
        servername,
        ca: await authority.root()
      })
      try {
        await once(socket, 'secureConnect')
        return socket.getPeerX509Certificate()
      } finally {
        socket.destroy()
      }
    }
    await eventually(
      () =>
        certificateOf('acme.aggios.test').then(
          () => true,
          () => false
        ),
      45_000
    )
    const certificates = await Promise.all(['acme.aggios.test', 'api.aggios.test', 'aggios.test'].map(certificateOf))
    t.equal(new Set(certificates.map((certificate) => certificate?.serialNumber)).size, 1)
    t.strictSame(certificates[0]?.subjectAltName?.split(', ').sort(), ['DNS:*.aggios.test', 'DNS:aggios.test'])
    t.strictSame([...authority.asked], ['_acme-challenge.aggios.test.'])
  }
)

/** Starts Pebble, a small ACME server like Let's Encrypt, and the DNS server that it queries. */
async function startAuthority(t: Test) {
  const dir = temporaryFolder(t)
  makeCertificate(dir, 'localhost')
  const [directory, management, dns, dnsControl] = await Promise.all([freePort(), freePort(), freePort(), freePort()])
  const config = {
    listenAddress: `127.0.0.1:${directory}`,
    managementListenAddress: `127.0.0.1:${management}`,
    certificate: join(dir, 'server.crt'),
    privateKey: join(dir, 'server.key'),
    httpPort: 1,
    tlsPort: 1
  }
  writeFileSync(join(dir, 'pebble.json'), JSON.stringify({ pebble: config }))
  const start = (path: string, args: string[]) => {
    const env = { PEBBLE_VA_NOSLEEP: '1', PEBBLE_WFE_NONCEREJECT: '0' } as unknown as NodeJS.ProcessEnv
    const child = spawn(path, args, { env, stdio: 'ignore' })
    const exited = once(child, 'exit')
    t.teardown(async () => {
      child.kill('SIGKILL')
      await exited
    })
  }
  start(pebble.path, ['-config', join(dir, 'pebble.json'), '-dnsserver', `127.0.0.1:${dns}`])
  start(dnsServer.path, [
    ...['-dns01', `127.0.0.1:${dns}`, '-management', `127.0.0.1:${dnsControl}`],
    ...['-http01', '', '-https01', '', '-tlsalpn01', '']
  ])

  // the DNS provider for Traefik: adds and removes a record
  const asked = new Set<string>()
  const provider = http.createServer(async (request, reply) => {
    let text = ''
    for await (const chunk of request.setEncoding('utf8')) text += chunk
    const { fqdn, value } = JSON.parse(text) as { fqdn: string; value: string }
    asked.add(fqdn)
    const [action, body] =
      request.url === '/present' ? ['set-txt', { host: fqdn, value }] : ['clear-txt', { host: fqdn }]
    await fetch(`http://127.0.0.1:${dnsControl}/${action}`, { method: 'POST', body: JSON.stringify(body) })
    reply.end()
  })
  provider.listen(0, '127.0.0.1')
  await once(provider, 'listening')
  t.teardown(() => {
    provider.close()
    provider.closeAllConnections()
  })

  const ca = readFileSync(join(dir, 'ca.crt'))
  const get = (port: number, path: string) =>
    exchange(https.request as typeof http.request, { host: 'localhost', port, path, ca, agent: false }, {})
  await eventually(
    () =>
      get(directory, '/dir').then(
        (reply) => reply.status === 200,
        () => false
      ),
    10_000
  )
  return {
    directory: `https://localhost:${directory}/dir`,
    caFile: join(dir, 'ca.crt'),
    resolver: `127.0.0.1:${dns}`,
    dnsProvider: `http://127.0.0.1:${(provider.address() as { port: number }).port}`,
    asked,
    root: async () => (await get(management, '/roots/0')).text
  }
}
