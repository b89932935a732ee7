import { type IncomingMessage, type RequestOptions, request as requestHttp } from 'node:http'
import { request as requestHttps } from 'node:https'
import { BlockList, isIP, type LookupFunction } from 'node:net'
import { createHostLookup, createSystemLookup, type HostLookup } from './host-lookups.ts'

/** An outbound request that failed. `timeout`: the other side took too long. The message has nothing that it has sent. */
export class OutboundFailure extends Error {
  readonly timeout: boolean
  constructor(message: string, { timeout = false, cause }: { timeout?: boolean; cause?: unknown } = {}) {
    super(message, { cause })
    this.timeout = timeout
  }
}

export type OutboundFetch = (url: string | URL, init?: OutboundRequest) => Promise<Response>
type OutboundRequest = {
  method?: string | undefined
  headers?: ConstructorParameters<typeof Headers>[0] | undefined
  body?: unknown
  signal?: AbortSignal | null | undefined
}

export const outboundTimeoutMs = 5000
export const maxOutboundBytes = 1024 * 1024

/** Networks that are not the public internet: RFC 6890 and its registries. */
const notPublic = new BlockList()
for (const [network, bits] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 4],
  ['240.0.0.0', 4]
] as const) {
  notPublic.addSubnet(network, bits, 'ipv4')
}
// only 2000::/3 is handed out; within it, addresses that carry an IPv4 address, and examples
const handedOut = new BlockList()
handedOut.addSubnet('2000::', 3, 'ipv6')
for (const [network, bits] of [
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['3fff::', 20]
] as const) {
  notPublic.addSubnet(network, bits, 'ipv6')
}

/** Tells whether an IP address is one of the public internet. */
export function isPublicAddress(address: string): boolean {
  const family = isIP(address)
  if (family === 4) return !notPublic.check(address, 'ipv4')
  return family === 6 && handedOut.check(address, 'ipv6') && !notPublic.check(address, 'ipv6')
}

const isLoopbackName = (hostname: string) =>
  /^(?:(?:[a-z0-9-]+\.)*localhost|127(?:\.\d{1,3}){3}|\[::1\])$/.test(hostname)

/**
 * Makes a `fetch` for addresses that a customer has configured, or that an answer of somebody else names. A request goes
 * to https only, and to the public internet only, so that nobody can reach what stands beside this server (SSRF). The
 * host is resolved once, by `findAddresses`, and the address that was checked is the one that is connected to.
 *
 * It follows no redirect, takes at most 1 MiB, and waits 5 seconds for the whole answer. Rejects with OutboundFailure.
 *
 * `privateNetworks` allows private addresses too, for servers that the operator has chosen in the settings. `development`
 * allows them as well, and http to this machine.
 */
export function createOutboundFetch({
  development,
  privateNetworks = development,
  findAddresses = privateNetworks ? createSystemLookup() : createHostLookup({ servers: [] })
}: {
  development: boolean
  privateNetworks?: boolean
  findAddresses?: HostLookup
}): OutboundFetch {
  async function findAllowed(hostname: string) {
    const addresses = await findAddresses(hostname).catch((cause: unknown) => {
      const { code } = cause as { code?: string }
      const timeout = code === 'ETIMEOUT' || code === 'ECANCELLED'
      throw new OutboundFailure(timeout ? 'the name servers did not answer' : 'the host was not found', {
        timeout,
        cause
      })
    })
    const allowed = privateNetworks ? addresses : addresses.filter(({ address }) => isPublicAddress(address))
    if (allowed.length === 0) throw new OutboundFailure('the host has no public address')
    return allowed
  }

  const lookup: LookupFunction = (hostname, options, done) => {
    findAllowed(hostname).then(
      (allowed) => {
        const [first] = allowed
        if (options.all) done(null, allowed)
        else done(null, first?.address ?? '', first?.family)
      },
      (err: NodeJS.ErrnoException) => done(err, [])
    )
  }

  return async (target, { method = 'GET', headers, body, signal } = {}) => {
    const url = new URL(target)
    const isPlain = url.protocol === 'http:' && development && isLoopbackName(url.hostname)
    if (url.protocol !== 'https:' && !isPlain) throw new OutboundFailure('only https is requested')
    if (url.username !== '' || url.password !== '') throw new OutboundFailure('the address has a password')
    // an address that is written as such is not looked up
    const literal = url.hostname.replace(/^\[(.*)\]$/, '$1')
    if (isIP(literal) && !privateNetworks && !isPublicAddress(literal)) {
      throw new OutboundFailure('the address is not public')
    }
    const sent = body === undefined || body === null ? undefined : String(body)
    const timeout = AbortSignal.timeout(outboundTimeoutMs)
    const options: RequestOptions = {
      method,
      agent: false,
      lookup,
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      headers: {
        'user-agent': 'aggios-api',
        ...Object.fromEntries(new Headers(headers)),
        'accept-encoding': 'identity',
        ...(sent !== undefined && { 'content-length': Buffer.byteLength(sent) })
      }
    }
    try {
      return await exchange(url, options, sent)
    } catch (err) {
      if (err instanceof OutboundFailure) throw err
      const late = timeout.aborted || signal?.aborted === true
      throw new OutboundFailure(late ? 'the answer took too long' : 'the request failed', { timeout: late, cause: err })
    }
  }
}

function exchange(url: URL, options: RequestOptions, body: string | undefined): Promise<Response> {
  return new Promise((fulfil, reject) => {
    const send = url.protocol === 'https:' ? requestHttps : requestHttp
    const request = send(url, options, (reply) => {
      readReply(reply).then(fulfil, (err: unknown) => {
        request.destroy()
        reject(err)
      })
    })
    request.on('error', reject)
    request.end(body)
  })
}

async function readReply(reply: IncomingMessage): Promise<Response> {
  const status = reply.statusCode ?? 0
  if (status >= 300 && status < 400) throw new OutboundFailure('the answer is a redirect')
  if (status < 200 || reply.headers['content-encoding'] !== undefined) {
    throw new OutboundFailure('the answer has another form than was asked for')
  }
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of reply as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > maxOutboundBytes) throw new OutboundFailure('the answer is too large')
    chunks.push(chunk)
  }
  const headers = new Headers()
  for (const [name, value] of Object.entries(reply.headers)) {
    for (const each of [value ?? []].flat()) headers.append(name, each)
  }
  return new Response(status === 204 ? null : Buffer.concat(chunks), { status, headers })
}
